"""The commands of msssl: one table says what each is for, how its help page reads and which function runs it.

Nothing here imports torch or Lightning, so that help appears at once.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_OF_DATA = """\
options:
  --config FILE              a config, here or among those that ship; several
                             are merged, and the later ones win
  --data CLASS               ImageFolder, CIFAR10, CIFAR100, STL10, Shapes,
                             Beton, or my_file.MyClass
  --data.data_dir DIR        folder of the images
  --data.batch_size N        images per device
  --data.num_workers N       processes that read images
"""

_OF_A_RUN = """\
options:
  --ckpt_path RUN            a run's folder, a checkpoint, or last (the newest)
"""


@dataclass(frozen=True)
class Command:
    """A command of msssl.

    Attributes:
        sentence: what it is for.
        page: examples and the options that matter.
        function: path of the function that runs it, whose arguments are its flags; None for a method of the Trainer.
        takes_data: whether the function gets a data module, which is built from a config and flags as for `fit`.
    """

    sentence: str
    page: str
    function: str | None = None
    takes_data: bool = False

    def load(self) -> Callable[..., Any]:
        """The function that runs it."""
        assert self.function is not None
        module, _, name = self.function.rpartition(".")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


COMMANDS = {
    "fit": Command(
        "Pretrain an encoder on images, without labels.",
        """\
examples:
  msssl fit --config cifar.yaml --trainer.max_epochs 20
  msssl fit --config imagefolder.yaml --data.data_dir DIR --model VICReg
  msssl fit --ckpt_path last --trainer.max_epochs 200      a run goes on

config:
  --config FILE              a config, here or among those that ship
                             (cifar.yaml, imagefolder.yaml, demo.yaml, ...);
                             several are merged, and the later ones win
  --ckpt_path RUN            go on with a run: its folder, a checkpoint, or
                             last, the newest run
  --seed_everything SEED     of weights, order and views
  --print_config             print the whole configuration, and stop

data:
  --data CLASS               ImageFolder, CIFAR10, CIFAR100, STL10, Shapes,
                             Beton, or my_file.MyClass
  --data.data_dir DIR        folder of the images
  --data.batch_size N        images per device
  --data.num_workers N       processes that read images
  --data.fraction SHARE      share of the training images that is used
  --data.val_fraction SHARE  share held out for validation

model:
  --model CLASS              BarlowTwins, VICReg, LeJEPA, FroSSL, LogDet,
                             VISReg, MVDHEL, SimCLR, SpectralContrastive,
                             MMCR, BYOL, SimSiam, or my_file.MyClass
  --model.backbone NAME      resnet18, resnet34, resnet50, timm:NAME
  --model.in_channels C      of the images, for such a backbone (3)
  --model.proj_dim D         width of the projector's output
  --model.weights FILE       what the encoder starts from
  --model.backbone_lr_scale  0.1 keeps more of such weights
  --model.optimizer CLASS    such as torch.optim.AdamW; then
  --model.optimizer.lr RATE  its learning rate
  --model.lr_scheduler CLASS such as msssl.WarmupCosine
  --model.chunk_views N      less memory for more time

views:
  --data.views.n_views K     views of each image
  --data.views.augmentations PRESET
                             cifar, stl10, imagenet, imagenet100, grayscale,
                             simclr, barlow, vicreg, photograph, xray,
                             microscopy, aerial

trainer:
  --trainer.max_epochs N, --trainer.max_steps N
  --trainer.devices N, --trainer.accelerator NAME, --trainer.strategy NAME
  --trainer.precision NAME   such as 32-true or bf16-mixed
  --trainer.accumulate_grad_batches N
  --trainer.gradient_clip_val NORM
  --trainer.log_every_n_steps N
  --trainer.default_root_dir DIR
                             where the folders of runs are made (runs)
""",
    ),
    "inspect": Command(
        "Draw the views that a run will see, and check its images.",
        f"""\
examples:
  msssl inspect --config cifar.yaml
  msssl inspect --config imagefolder.yaml --data.data_dir DIR
  msssl inspect --config cifar.yaml --data.views.n_views 8 --out views.png

{_OF_DATA}\
  --out FILE                 the picture to write (views.png)
""",
        function="msssl.data.inspect.inspect",
        takes_data=True,
    ),
    "probe": Command(
        "Measure how good an encoder's features are.",
        f"""\
examples:
  msssl probe --ckpt_path last
  msssl probe --ckpt_path runs/A --labels_per_class 1 10
  msssl probe --ckpt_path runs/A --config imagefolder.yaml --data.data_dir DIR

{_OF_A_RUN}\
  --config FILE, --data CLASS, --data.data_dir DIR
                             other images than those of the run
  --data A.yaml --data B.yaml
                             several sets, and a table of all of them
  --protocol NAME            standard, or paper: as Ghosh et al. evaluate
  --test_patches V           average the features over V views of an image
  --labels_per_class N ...   also with so few labels
  --baselines false          leave out raw pixels and random weights
  --against NAME ...         also other weights: torchvision:WEIGHTS,
                             timm:NAME, or a file
""",
        function="msssl.evaluation.probe",
    ),
    "finetune": Command(
        "Train the whole encoder on labels, beside other starting points.",
        f"""\
examples:
  msssl finetune --ckpt_path last --labels_per_class 10 100
  msssl finetune --ckpt_path runs/A --label_fraction 0.01 0.1 --against scratch
  msssl finetune --ckpt_path runs/A --config cifar.yaml

{_OF_A_RUN}\
  --config FILE, --data CLASS, --data.data_dir DIR
                             other images than those of the run
  --labels_per_class N ...   so many labelled images of each class
  --label_fraction SHARE ... a share of the labels (1: all of them)
  --against START ...        other starting points: scratch,
                             torchvision:WEIGHTS, timm:NAME, or a file
  --draws N                  random choices of the labelled images (3)
  --learning_rates RATE ...  the best on validation images is taken
  --batch_size N             images in a batch of all devices (64)
  --trainer.max_epochs N, --trainer.devices N, --trainer.precision NAME
                             and other flags of the trainer
""",
        function="msssl.evaluation.finetune",
    ),
    "predict": Command(
        "Write the features or classes of images to a file.",
        f"""\
examples:
  msssl predict --ckpt_path last --split all
  msssl predict --ckpt_path runs/A --data.data_dir DIR --out features.npz
  msssl predict --ckpt_path runs/A --head runs/A/probe.head.pt

{_OF_A_RUN}\
  --config FILE, --data CLASS, --data.data_dir DIR
                             other images than those of the run
  --split NAME               test, val, train or all of the images (test, or all
                             where there is no test split)
  --out FILE                 the file to write, .npz or .parquet (features.npz
                             beside the checkpoint, never over an earlier one)
  --head FILE                classes by this head of msssl probe, not features
  --format NAME              npz or parquet, where --out does not say it
""",
    ),
    "neighbours": Command(
        "Write a page of images beside those with the most similar features.",
        f"""\
examples:
  msssl neighbours --ckpt_path last
  msssl neighbours --ckpt_path runs/A --n_images 100 --out page.html
  msssl neighbours --ckpt_path last --data ImageFolder --data.data_dir DIR

{_OF_A_RUN}\
  --config FILE, --data CLASS, --data.data_dir DIR
                             other images than those of the run
  --out FILE                 the page to write (neighbours.html)
  --n_images N               images to show, evenly spread over the test images,
                             or over the others where there are none (24)
  --n_neighbours N           neighbours to show beside each (8)
""",
        function="msssl.evaluation.neighbours",
    ),
    "export": Command(
        "Write the encoder for torchvision, timm, ONNX or safetensors.",
        f"""\
examples:
  msssl export --ckpt_path last --format torchvision
  msssl export --ckpt_path runs/A --format onnx --head runs/A/probe.head.pt
  msssl export --ckpt_path runs/A --format safetensors --out encoder

{_OF_A_RUN}\
  --format NAME              torchvision, timm, onnx or safetensors
  --head FILE                the head of msssl probe to put behind the encoder
  --out DIR                  the folder to write
""",
        function="msssl.evaluation.export",
    ),
    "report": Command(
        "Put runs, or the results of a study, side by side.",
        """\
examples:
  msssl report runs/A runs/B
  msssl report runs/A runs/B --out tables/cifar
  msssl report STUDY.yaml

options:
  RUNS                       folders of runs that were probed, or a study
  --out NAME                 of the files to write, without their ending
  --root DIR                 where msssl sweep made the runs of a study (runs)
""",
        function="msssl.studies.report",
    ),
    "sweep": Command(
        "Train and probe all runs of a study.",
        """\
examples:
  msssl sweep --config STUDY.yaml
  msssl sweep --config STUDY.yaml --root my_runs
  msssl report STUDY.yaml                     then, its table and figure

options:
  --config FILE ...          the study, and overlays that win over it
  --root DIR                 where the folders of runs are made (runs)
  --list                     print the cells with their number and state
  --cell N                   run only the cell of this number
  --data_dir DIR             folder of the images, for the studies in
                             paper/small/
""",
        function="msssl.cli.sweep.sweep",
    ),
    "validate": Command(
        "Repeat the validation of a run.",
        f"""\
examples:
  msssl validate --ckpt_path last
  msssl validate --ckpt_path runs/A
  msssl validate --ckpt_path runs/A/best.ckpt

{_OF_A_RUN}""",
    ),
    "test": Command(
        "Run the online probe of a run on the test images.",
        f"""\
examples:
  msssl test --ckpt_path last
  msssl test --ckpt_path runs/A
  msssl test --ckpt_path runs/A/best.ckpt

{_OF_A_RUN}""",
    ),
    "write-beton": Command(
        "Write the images as files of FFCV.",
        f"""\
examples:
  msssl write-beton --config imagefolder.yaml --data.data_dir DIR
  msssl write-beton --config cifar.yaml --out beton
  msssl fit --config cifar.yaml --config ffcv.yaml     then, a run on the files

{_OF_DATA}\
  --out DIR                  folder of the files
  --write_mode NAME          raw, jpg or proportion
  --max_side N               larger images are reduced to this side
""",
        function="msssl.data.write_beton.write_beton",
        takes_data=True,
    ),
}
OF_TRAINER = [name for name, command in COMMANDS.items() if command.function is None]
