"""Libraries that a training rank imports when it needs them; ranks that are copies of one process find them there."""

from contextlib import suppress

from fmad_dist.base.deepspeed import import_deepspeed
from fmad_dist.base.errors import UserError

with suppress(UserError):  # said by the ranks
    import_deepspeed()

import accelerate  # noqa: F401
import pyarrow.dataset  # noqa: F401
import scipy.special  # noqa: F401
import torch._dynamo  # noqa: F401  # by the first step of any optimizer
import transformers.integrations  # noqa: F401
