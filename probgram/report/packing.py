"""Numbers in as few bits as the largest needs, as text that a page carries and its script unpacks."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(values: NDArray[Any]) -> dict[str, Any]:
    """Pack integers from 0, or booleans, of any shape, the last dimension fastest.

    Returns:
        `bits` of each number, their `count`, and as base64 the `data`: one number after another without gaps, the
        most significant bit first.
    """
    flat = values.reshape(-1).astype(np.uint32)
    bits = max(1, int(flat.max(initial=0)).bit_length())
    places = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    digits = (flat[:, None] >> places & 1).astype(np.uint8)  # [count, bits]
    data = base64.b64encode(np.packbits(digits).tobytes()).decode("ascii")
    return {"bits": bits, "count": flat.size, "data": data}
