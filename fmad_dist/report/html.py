"""Put an evaluation on one HTML page that opens offline; where it would be too large, on one per class and an index."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fmad_dist.jobs.speed import PHASES, Speed
from fmad_dist.metrics.results import IMAGE_METRICS, METRIC_NAMES, PIXEL_METRICS, ClassResult, Results, ScoreRow
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.report import charts
from fmad_dist.report.benchmark import ORIGINS, ComparedRow, benchmark_tables, compared_rows, shared_cautions
from fmad_dist.report.tables import Table, anchors, areas_table, summary_table, types_table
from fmad_dist.report.tiles import Gallery, gallery
from fmad_dist.report.titles import bare_title, interval_text, long_title, percent, setting_text, short_title
from fmad_dist.storage import Store

REPORT_NAME = "report.html"
PAGES = "report-classes"  # folder beside the page, for those of classes
PAGE_BYTES = 40 << 20  # of pictures, of which browsers draw no more well
HEADLINE = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")


def write_report(
    results: Results,
    state: EvaluationState,
    out: Path,
    *,
    title: str,
    facts: dict[str, str],
    peers: Mapping[str, Sequence[ComparedRow]] | None = None,
    configuration: str = "",
    speed: Speed | None = None,
) -> Path:
    """Write the page to the file `out`, completely or not at all, and return its path. It loads nothing from anywhere.

    With more than PAGE_BYTES of pictures every class has a page of its own in the folder PAGES beside it, to which the
    page links; they are written one after the other, before the page.

    `state` is the merged state that `results` were computed from; `facts` is where the numbers come from, by name;
    `peers` are measured rows per dataset that stand between ours and the published ones. With equal input the page has
    equal bytes; what was measured about speed differs, and stands between `<!-- measured -->` and `<!-- /measured -->`.
    """
    store, ids = Store(out.parent), anchors(results.classes)
    sections = list(_that_fit(class_sections(results, state)))
    paged = len(sections) < len(ids)
    environment = _environment(paged)
    if store.exists(PAGES):
        store.remove(PAGES)
    if paged:
        sections, template = [], environment.get_template("page.html.j2")
        for section in class_sections(results, state):
            page = template.render(
                section=section, title=title, report=out.name, frame=charts, metric_names=METRIC_NAMES
            )
            store.write(f"{PAGES}/{section.anchor}.html", page.encode())
    benchmarks = benchmark_tables(compared_rows(results, peers or {}))
    page = environment.get_template("report.html.j2").render(
        title=title,
        results=results,
        headline=HEADLINE,
        metric_groups={"Image": IMAGE_METRICS, "Pixel": PIXEL_METRICS},
        summary=summary_table(results),
        bars=charts.bar_charts(results),
        areas=areas_table(results),
        benchmarks=benchmarks,
        shared_cautions=shared_cautions(benchmarks),
        origins=ORIGINS,
        sections=sections,
        anchors=ids,
        frame=charts,
        speed=speed,
        phases=PHASES,
        facts=facts,
        configuration=configuration,
        metric_names=METRIC_NAMES,
    )
    store.write(out.name, page.encode())
    return out


@dataclass(frozen=True, slots=True)
class ClassSection:
    """A class, its results and what is drawn of it; `types` by type of defect, when there are several."""

    name: str
    anchor: str
    result: ClassResult
    charts: tuple[charts.Chart, ...]
    gallery: Gallery
    types: Table | None


def class_sections(results: Results, state: EvaluationState) -> Iterator[ClassSection]:
    """What the report shows of every class, one after the other; `state` as in `write_report`."""
    rows: dict[str, list[ScoreRow]] = {name: [] for name in results.classes}
    for row in results.scores:
        rows[row.class_name].append(row)
    for name, anchor in anchors(results.classes).items():
        yield _class_section(name, anchor, rows[name], results, state)


def _that_fit(sections: Iterable[ClassSection]) -> Iterator[ClassSection]:
    """The first sections whose pictures fit on one page."""
    num_bytes = 0
    for section in sections:
        num_bytes += section.gallery.num_bytes
        if num_bytes > PAGE_BYTES:
            return
        yield section


def _class_section(
    name: str, anchor: str, rows: Sequence[ScoreRow], results: Results, state: EvaluationState
) -> ClassSection:
    result, class_state = results.classes[name], state.classes[name]
    histogram = class_state.merged_histogram()
    rates = charts.roc_chart(rows, histogram, result), charts.pro_chart(histogram, result, results.protocol.fpr_limit)
    drawn = tuple(chart for chart in (charts.score_chart(rows), *rates) if chart is not None)
    tiles = gallery(class_state.board.final({row.sample_id: row.score for row in rows}))
    return ClassSection(name, anchor, result, drawn, tiles, types_table(result))


def _environment(paged: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("fmad_dist.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (bare_title, interval_text, long_title, percent, setting_text, short_title)
    environment.filters |= {writing.__name__: writing for writing in filters}
    environment.globals["class_link"] = lambda anchor: f"{PAGES}/{anchor}.html" if paged else f"#{anchor}"
    return environment
