from support.enumeration import fixed_latency  # noqa: F401 (a fixture)
