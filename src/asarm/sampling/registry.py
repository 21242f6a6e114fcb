"""Samplers by the names that evaluations give them."""

SAMPLERS = {
    "sequential": {"sampler": "sequential"},
    "assd-self": {"sampler": "assd", "draft": "self"},
    "assd-ngram": {"sampler": "assd", "draft": "ngram"},
    "fused": {"sampler": "fused"},
    "fused-blind": {"sampler": "fused", "draft": "blind"},
    "fused-adaptive": {"sampler": "fused", "coupling": "block", "adaptive": True},
    "parallel": {"sampler": "parallel"},
}
