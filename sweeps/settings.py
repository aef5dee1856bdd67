"""Which ways to sample from its runs a study asks for, and which of them are still to do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.study import Planned, Study
from tarflow.config import RunConfig, SamplerConfig, to_dict
from tarflow.identity import setting_id

FILES = "runs/*/evaluations/*.json"  # one for each way that was sampled
SEED = 0  # of the noise: that of the runs' own samples, so that all settings see the same


@dataclass(frozen=True)
class Sampling:
    """One way to sample from one run."""

    run: Planned
    sampler: SamplerConfig

    @property
    def run_id(self) -> str:
        """Name within the batch: the run's, and the setting's."""
        return f"{self.run.run_id}/{self.setting_id}"

    @property
    def setting_id(self) -> str:
        """Name of the setting, which is that of its file."""
        return setting_id(replace(self.config, sampler=self.sampler), SEED)

    @property
    def label(self) -> str:
        """Name for people: the run, and what differs from its own setting."""
        own, here = to_dict(self.config.sampler), to_dict(self.sampler)
        changed = [f"{name} {value}" for name, value in here.items() if value != own[name]]
        return f"{self.run.label} at {', '.join(changed)}"

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return self.run.config


def settings(study: Study, config: RunConfig) -> tuple[SamplerConfig, ...]:
    """Return the ways to sample from a run, each once; its own comes with the run itself.

    Where nothing is guided, or nothing can be denoised, settings that do the same are one.
    """
    found = dict.fromkeys(effective(setting, config) for setting in study.settings)
    return tuple(each for each in found if each != effective(config.sampler, config))


def effective(sampler: SamplerConfig, config: RunConfig) -> SamplerConfig:
    """Return the one setting that stands for all which do the same to a run."""
    if config.noise.type == "uniform":
        sampler = replace(sampler, denoise=config.sampler.denoise)
    same = not config.model.classes and sampler.temperature == 1.0  # both branches
    if same or not sampler.guidance:
        return replace(SamplerConfig(), denoise=sampler.denoise)
    if sampler.guides(0, config.model.blocks):  # the last of all
        sampler = replace(sampler, guided_blocks="all")
    return sampler


def to_sample(study: Study, runs: Sequence[Planned], out: Path) -> list[Sampling]:
    """List what the study asks for and its folder does not hold yet."""
    asked = [Sampling(run, each) for run in runs for each in settings(study, run.config)]
    there = {f"{path.parent.parent.name}/{path.stem}" for path in out.glob(FILES)}
    return [each for each in asked if each.run_id not in there]
