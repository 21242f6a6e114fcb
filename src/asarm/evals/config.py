"""Settings that all evaluations share."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from asarm.models.compiled import CHOICES
from asarm.models.load import DTYPES
from asarm.sampling.config import SamplerConfig
from asarm.sampling.registry import SAMPLERS
from asarm.utils.config import option
from asarm.utils.errors import InputError


@dataclass
class EvalConfig(SamplerConfig):
    """What every evaluation of a model is told; SamplerConfig's fields hold for all of its variants."""

    # Set for each variant, and no options here.
    sampler: str = field(default="assd", init=False)
    draft: str = field(default="self", init=False)
    adaptive: bool = field(default=False, init=False)

    model: str = option("therealgabeguo/ASARM", "a bundled model, a folder or a Hub repository")
    revision: str | None = option(None, "branch, tag or commit of a Hub repository")
    white_space: str = option("auto", "auto, plain, or tokens: as the released code models read code")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = option("auto", "auto (bfloat16 on GPUs that have it, else float32), float32 or bfloat16")
    compile: str = option("auto", "auto (on GPUs), on or off: decoding steps by torch.compile and CUDA graphs")
    seed: int = option(0, "seeds all that is drawn")
    output_dir: str = option("", "folder for the results; a run that was interrupted there goes on")

    def __post_init__(self):
        super().__post_init__()
        self.check_choices("dtype", [self.dtype], DTYPES)
        self.check_choices("compile", [self.compile], CHOICES)
        self.check_at_least(seed=0)
        if not self.output_dir:
            raise InputError("no output_dir given")

    def check_at_least(self, **least: int) -> None:
        """InputError when a field is below its least value."""
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} must be at least {value}, not {getattr(self, name)}")

    def check_choices(self, name: str, given: Iterable[str], choices: Iterable[str]) -> None:
        """InputError when what is given is none of the choices. name: that of one choice."""
        for one in given:
            if one not in choices:
                raise InputError(f"unknown {name} {one!r}: choose from {', '.join(filter(None, choices))}")

    def sampler_config(self, name: str, **changes) -> SamplerConfig:
        """The settings of one of SAMPLERS, with changes."""
        shared = {f.name: getattr(self, f.name) for f in fields(SamplerConfig) if f.init}
        return SamplerConfig(**(shared | SAMPLERS[name] | changes))
