"""Score finished texts of `asarm decode` with another causal model: `python -m asarm judge RESULTS --judge NAME`.

RESULTS is the output_dir of `asarm decode`. Nothing is decoded again, and nothing there is changed: metrics, a table
and plots, with perplexities and entropies under the model NAME, go to RESULTS/judge-NAME. They are taken as in the run
that decoded, unless options say otherwise. A run that was interrupted goes on. (`asarm code judge` is something else:
it runs the tests of completed code.)
"""

from asarm.cli.presets import complete
from asarm.evals.decoding.rescore import Rescoring, RescoringConfig
from asarm.utils.config import OptionParser, from_options, options_of
from asarm.utils.logging_setup import quiet_libraries


def main(arguments: list[str]) -> None:
    """Run the command with its command-line arguments."""
    parser = OptionParser(options_of(RescoringConfig), prog="asarm judge", description=__doc__)
    parser.add_argument("results", help="folder of a finished run of asarm decode")
    options, extra = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    config = from_options(RescoringConfig, **vars(options))
    quiet_libraries()
    scoring = Rescoring(extra.results, config)
    complete(scoring, "texts with scores, metrics and plots")
