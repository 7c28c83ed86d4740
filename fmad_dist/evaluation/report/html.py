"""Put an evaluation on one HTML page that opens offline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fmad_dist.evaluation.report import charts
from fmad_dist.evaluation.report.bars import bar_charts
from fmad_dist.evaluation.report.benchmark import ORIGINS, benchmark_tables, compared_rows, shared_cautions
from fmad_dist.evaluation.report.published import ComparedRow
from fmad_dist.evaluation.report.sections import class_section, interval_notes
from fmad_dist.evaluation.report.summary import areas_table, lowest_values, summary_rows
from fmad_dist.evaluation.report.titles import bare_title, long_title, metric_groups, percent, setting_text, short_title
from fmad_dist.evaluation.results import METRIC_NAMES, Results
from fmad_dist.evaluation.speed import PHASES, Speed
from fmad_dist.evaluation.state import EvaluationState
from fmad_dist.storage import Store

REPORT_NAME = "report.html"
HEADLINE = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")
NO_PEERS: Mapping[str, Sequence[ComparedRow]] = {}


def write_report(
    results: Results,
    state: EvaluationState,
    out: Path,
    *,
    title: str,
    facts: dict[str, str],
    peers: Mapping[str, Sequence[ComparedRow]] = NO_PEERS,
    configuration: str = "",
    speed: Speed | None = None,
) -> Path:
    """Write the page to the file `out`, completely or not at all, and return its path. It loads nothing from anywhere.

    `state` is the merged state that `results` were computed from; `facts` is where the numbers come from, by name;
    `peers` are measured rows per dataset that stand between ours and the published ones. With equal input the page has
    equal bytes; what was measured about speed differs, and stands between `<!-- measured -->` and `<!-- /measured -->`.
    """
    page = _template().render(
        title=title,
        **_overview(results),
        **_comparison(results, peers),
        sections=[class_section(name, results, state) for name in results.classes],
        frame=charts,
        speed=speed,
        phases=PHASES,
        facts=facts,
        configuration=configuration,
        protocol={name.replace("_", " "): setting_text(value) for name, value in results.protocol.model_dump().items()},
        estimated=[long_title(name) for name in METRIC_NAMES if name in results.protocol.estimated],
        scores_of_the_set=results.protocol.needs_map_sum,
        stretched=results.protocol.aupro_stretched is not None,
    )
    Store(out.parent).write(out.name, page.encode())
    return out


def _overview(results: Results) -> dict[str, Any]:
    groups = metric_groups()
    return {
        "mean": results.mean,
        "protocol_title": results.protocol.title,
        "protocol_note": results.protocol.note,
        "headline": [(long_title(name), percent(getattr(results.mean.metrics, name))) for name in HEADLINE],
        "mean_notes": interval_notes(results.mean.intervals),
        "metric_groups": groups,
        "group_starts": {METRIC_NAMES.index(names[0]) for _, names in groups},
        "rows": summary_rows(results),
        "any_lowest": bool(lowest_values(results)),
        "left_out": results.mean.undefined,
        "bars": bar_charts(results),
        "areas": areas_table(results),
    }


def _comparison(results: Results, peers: Mapping[str, Sequence[ComparedRow]]) -> dict[str, Any]:
    tables = benchmark_tables(compared_rows(results, peers))
    return {"benchmarks": tables, "shared_cautions": shared_cautions(tables), "origins": ORIGINS}


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("fmad_dist.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bare_title": bare_title, "short_title": short_title}
    return environment.get_template("report.html.j2")
