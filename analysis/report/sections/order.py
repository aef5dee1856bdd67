"""The sections of the page in reading order."""

from analysis.report.section import Block, Material
from analysis.report.sections import ablation as blocks_ablation
from analysis.report.sections import laws as blocks_laws
from analysis.report.sections import runs as blocks_runs


def blocks(material: Material) -> list[Block]:
    """Return every section of the page. A study without laws begins with what it compares."""
    ablations = blocks_ablation.sections(material)
    laws = [
        blocks_laws.law(material),
        blocks_runs.curves(material),
        blocks_laws.isoflop(material),
        blocks_laws.residuals(material),
        blocks_laws.exponents(material),
        blocks_laws.allocation(material),
        blocks_laws.validation(material),
        blocks_laws.final(material),
    ]
    quality = [
        blocks_runs.quality(material),
        blocks_runs.disagreement(material),
        *blocks_runs.others(material),
    ]
    rest = [blocks_runs.images(material)]
    end = [blocks_runs.cost(material), blocks_runs.reproducibility(material)]
    if ablations and material.findings.runs.empty:
        return [*ablations, *quality, blocks_runs.curves(material), *rest, *end]
    search = blocks_runs.search(material)
    return [*laws, *ablations, *quality, blocks_runs.samples(material), *rest, search, *end]
