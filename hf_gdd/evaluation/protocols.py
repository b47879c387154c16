"""Protocols: how a set is trained on."""

import re

from hf_gdd.report import SOFT

# How often each protocol looks at the test set. The public DiM code keeps the best of five looks; we look once.
LOOKS = {"fixed": 1, SOFT: 1, "dynamic": 1, "dynamic-best5-test": 5}


POOL = re.compile(r"dynamic-pool-([1-9]\d{0,4})")


def pool_size(protocol: str) -> int | None:
    """Epochs of images that a protocol materializes: m for `dynamic-pool-m`, 1 for fixed sets; None makes them afresh.

    Raises:
        ValueError: there is no such protocol.

    """
    if found := POOL.fullmatch(protocol):
        return int(found[1])
    if protocol not in LOOKS:
        raise ValueError(f"Unknown protocol {protocol!r}; choose one of {', '.join(LOOKS)}, or dynamic-pool-5, say.")
    return 1 if protocol in ("fixed", SOFT) else None
