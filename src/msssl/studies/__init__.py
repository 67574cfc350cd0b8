"""Studies: many runs, their choices, and a table with the published numbers beside ours."""

from msssl.studies.read import read_study as read_study
from msssl.studies.report import report as report
