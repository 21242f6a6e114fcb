"""What need not be kept for the backward pass, because making it again costs little."""

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function, *arguments, random: bool = False):
    """function(*arguments); what it computes inside is made again in the backward pass instead of being kept.

    A matrix product at the end of the function is not repeated: the pass stops as soon as it has the product's input.
    random: the function draws random numbers (dropout), which must be the same again. Compilers make their own choice
    of what to keep.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)
