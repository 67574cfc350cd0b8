"""Sets up logging: shows msssl's own messages, and hides Lightning's tips and some warnings."""

import logging
import warnings

from msssl.run.run_folder import rank


def set_up_logging() -> None:
    """Show msssl's own log on rank 0, and none of Lightning's tips and advertisements."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("msssl")
    log.handlers = [handler]
    log.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for noise in (
        ".*smaller than the logging interval.*",  # it is lowered
        ".*LeafSpec.*",  # a deprecation between torch and Lightning
        ".*does not have many workers.*",  # small sets need none
        ".*exists and is not empty.*",  # the run's folder is made before it is used
        ".*Couldn't infer the batch indices.*",  # our batches carry them
        ".*callbacks used to create the checkpoint.*",  # validate, test and predict have no use for all of them
        ".*sync_dist=True.*",  # what one rank measures for all
        ".*dirpath has changed.*",  # each run has a folder of its own
    ):
        warnings.filterwarnings("ignore", message=noise)
