"""Which results a folder holds."""

from collections.abc import Sequence

from fmad_dist.errors import UserError, first_line
from fmad_dist.evaluation.results import RESULTS_NAME
from fmad_dist.prediction.table import TABLE_NAME
from fmad_dist.storage import Store
from fmad_dist.view.evaluation import Evaluation
from fmad_dist.view.prediction import Prediction
from fmad_dist.view.results import ScoredImages


def open_results(url: str, sources: Sequence[str] = (), maps: str | None = None) -> ScoredImages:
    """The results in a folder at any URL; `sources` are the datasets of an evaluation, for its images, `maps` is the
    folder of its maps.

    Raises:
        UserError: there are none, or they are damaged.
    """
    store = Store(url)
    name = next((one for one in (TABLE_NAME, RESULTS_NAME) if store.exists(one)), None)
    if name is None:
        raise UserError(
            f"{store.url}: holds no finished results ({TABLE_NAME} or {RESULTS_NAME}); give the --out of "
            "`fmad predict` or of `fmad evaluate`."
        )
    try:
        return Prediction(store) if name == TABLE_NAME else Evaluation(store, sources, maps)
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{store.url_of(name)}: not results of this version ({first_line(error)}).") from None
