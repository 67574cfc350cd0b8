"""What modules and data modules share about checkpoints: hyperparameters that load again, and safe loading."""

from msssl.checkpoint.checkpoint_io import WholeCheckpointIO as WholeCheckpointIO
from msssl.checkpoint.files import LAST as LAST
from msssl.checkpoint.files import NotWrittenError as NotWrittenError
from msssl.checkpoint.files import check_file_writable as check_file_writable
from msssl.checkpoint.files import check_writable as check_writable
from msssl.checkpoint.files import find as find
from msssl.checkpoint.files import read as read
from msssl.checkpoint.files import read_file as read_file
from msssl.checkpoint.files import sha256_of as sha256_of
from msssl.checkpoint.files import whole as whole
from msssl.checkpoint.files import write_file as write_file
from msssl.checkpoint.files import write_text as write_text
from msssl.checkpoint.files import writing as writing
from msssl.checkpoint.head import read_head as read_head
from msssl.checkpoint.head import write_head as write_head
from msssl.checkpoint.reloadable import MissingArgumentsError as MissingArgumentsError
from msssl.checkpoint.reloadable import Reloadable as Reloadable
from msssl.checkpoint.reloadable import first_difference as first_difference
from msssl.checkpoint.reloadable import load_state as load_state
