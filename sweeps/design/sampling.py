"""Ways to sample from finished runs: which ones a study asks for, and which are still missing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.design.study import PlannedRun, Study
from tarflow.config import RunConfig, SamplerConfig
from tarflow.config_files import to_dict
from tarflow.identity import WHOLE, setting_id

FILES = "runs/*/evaluations/*.json"  # one for each setting of each run that was sampled
SEED = 0  # of the noise: that of the runs' own samples, so that all settings see the same


@dataclass(frozen=True)
class SamplingTask:
    """One sampler setting of one finished run."""

    model_id: str  # id of the run
    model_label: str  # label of the run
    config: RunConfig  # config of the run
    sampler: SamplerConfig  # setting to draw with
    seed: int = SEED
    parts: tuple[str, ...] = WHOLE  # parts of the samples that are scored separately

    @property
    def run_id(self) -> str:
        """Name within the batch: the run's id, and the setting's."""
        return f"{self.model_id}/{self.setting_id}"

    @property
    def setting_id(self) -> str:
        """Name of the setting, and of its file."""
        return setting_id(replace(self.config, sampler=self.sampler), self.seed, self.parts)

    @property
    def label(self) -> str:
        """Name for people: the run, and what differs from its own setting."""
        own, asked = to_dict(self.config.sampler), to_dict(self.sampler)
        changed = [f"{name} {value}" for name, value in asked.items() if value != own[name]]
        return f"{self.model_label} at {', '.join(changed) or 'its own setting'}"


def settings(study: Study, config: RunConfig) -> tuple[SamplerConfig, ...]:
    """Return the sampler settings that a study asks for beside a run's own, each once.

    Settings that do the same are one: where nothing is guided, or nothing can be denoised.
    """
    asked = dict.fromkeys(effective(setting, config) for setting in study.settings)
    return tuple(setting for setting in asked if setting != effective(config.sampler, config))


def effective(sampler: SamplerConfig, config: RunConfig) -> SamplerConfig:
    """Return the one setting that stands for all that do the same to a run."""
    if config.noise.type == "uniform":
        sampler = replace(sampler, denoise=config.sampler.denoise)
    same_branches = not config.model.conditional and sampler.temperature == 1.0
    if same_branches or not sampler.guidance:
        return replace(SamplerConfig(), denoise=sampler.denoise)
    if sampler.guides(0, config.model.blocks):  # the last of all
        sampler = replace(sampler, guided_blocks="all")
    return sampler


def to_sample(study: Study, runs: Sequence[PlannedRun], out: Path) -> list[SamplingTask]:
    """List the sampler settings that a study asks for and that its folder lacks.

    Args:
        study: Study that names the settings.
        runs: Runs to sample from.
        out: Folder of the study; it need not exist.
    """
    tasks = [
        SamplingTask(run.run_id, run.label, run.config, setting)
        for run in runs
        for setting in settings(study, run.config)
    ]
    sampled = {f"{path.parent.parent.name}/{path.stem}" for path in out.glob(FILES)}
    return [task for task in tasks if task.run_id not in sampled]
