"""The reference of methods that go from iterate to iterate."""

import pytest
import torch

from upslope import UsageError
from upslope.parts.iterate import IterateReference
from upslope.testing import batch_of


@pytest.mark.parametrize(
    ("share", "needs"), [(0.0, {"old_logp"}), (0.25, {"ref_logp", "old_logp"}), (1.0, {"ref_logp"})]
)
def test_it_reads_what_it_mixes(share, needs):
    batch = batch_of([[1, 0]])
    batch = batch.replace(old_logp=batch.logp - 0.5)
    part = IterateReference(share)
    assert part.needs == needs
    mixed = part(batch.only(part.needs))["ref_logp"]
    torch.testing.assert_close(mixed, share * batch.ref_logp + (1 - share) * batch.old_logp)
    assert str(share)[:3] in part.describe() or share in (0, 1)


def test_a_share_beyond_one_is_refused():
    with pytest.raises(UsageError, match=r"share=1\.5"):
        IterateReference(1.5)
