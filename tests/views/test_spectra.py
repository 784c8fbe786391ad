"""The picture of a spectrum shows what the result holds."""

import inspect
from typing import Any

import matplotlib.pyplot as plt
import pytest

import jscope_tl as js
from tests.models import TOKENS

pytestmark = pytest.mark.newest_line


@pytest.mark.parametrize("k", [2, 6])
def test_bars_add_up_to_the_energy(pocket: Any, k: int) -> None:
    found = js.spectrum(pocket, "the keys to the cabinet", of="fisher", k=k)
    energy, ranks = js.views.spectrum(found).axes
    bars = [[bar.get_height() for bar in container] for container in energy.containers]
    assert len(bars) == min(k, 4) + 1
    assert [sum(at) for at in zip(*bars, strict=True)] == pytest.approx(found.energy.tolist(), rel=1e-4)
    assert [bar.get_height() for bar in ranks.patches] == pytest.approx(found.effective_rank.tolist())
    assert energy.get_ylim()[1] == pytest.approx(1.05 * float(found.energy[1:].max()))
    assert "BOS is left out" in energy.get_title(loc="left")
    assert found.unit in energy.get_ylabel()


def test_in_axes_of_ones_own(llama: Any) -> None:
    found = js.spectrum(llama, TOKENS, position=3)
    figure, axes = plt.subplots(2)
    assert js.views.spectrum(found, ax=axes) is figure
    plt.close(figure)
    with pytest.raises(js.InputError, match="one matplotlib axes"):
        js.views.spectrum(found, ax=axes[0])


def test_only_spectra(llama: Any) -> None:
    with pytest.raises(js.InputError, match=r"takes a Spectrum.*got Attribution"):
        inspect.unwrap(js.views.spectrum)(js.attribute(llama, TOKENS))
