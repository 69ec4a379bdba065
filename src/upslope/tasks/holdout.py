"""Which questions are kept for evaluation: a fixed tenth, chosen by the question's own text."""

import hashlib

BUCKETS = 10


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the tenth that nothing is ever trained on.

    The rule: the first 8 bytes of the SHA-256 of the question's UTF-8 text, read as a big-endian integer, are divisible
    by 10. It reads nothing but the text, so pre-training of the embedded model and every later run agree on it,
    whatever their seeds, settings and order. Equal questions fall on the same side; a question in other words does not
    have to.
    """
    digest = hashlib.sha256(question.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS == 0
