"""What several test modules share: weights of a small network, and no settings of the user."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Two workers with torch's threads on every core wait for each other most of the time. Before torch comes in.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A caller that ignores Ctrl-C, as a shell's background job, leaves that to its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine, not of the code.
settings.register_profile("mdd", deadline=None)
settings.load_profile("mdd")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run take some of the selected tests: `pytest -m slow --slow-sample 6 --slow-seed COMMIT`."""
    parser.addoption("--slow-sample", type=int, default=0, help="run so many of the slow tests")
    parser.addoption("--slow-seed", default="0", help="which ones: the same text, the same tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a seeded sample of the slow tests, the same one in every worker."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    count = config.getoption("--slow-sample")
    if not 0 < count < len(slow):
        return
    draw = random.Random(config.getoption("--slow-seed"))  # noqa: S311 which tests run is no secret
    chosen = set(draw.sample(range(len(slow)), count))
    dropped = {id(item) for number, item in enumerate(slow) if number not in chosen}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in dropped])
    items[:] = [item for item in items if id(item) not in dropped]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Workers send their reports as UTF-8, which names of files need not be."""
    report = yield
    report.sections = [(title, _printable(text)) for title, text in report.sections]
    if report.longrepr is not None and not isinstance(report.longrepr, tuple):
        text = str(report.longrepr)
        if text != _printable(text):
            report.longrepr = _printable(text)
    return report


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have MDD_* variables; no test means them."""
    for name in list(os.environ):
        if name.startswith("MDD_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _nothing_in_the_folders_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys and journals of the tests lie in folders of their own, also those of processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights of a small network that changes what it is given a little, at random."""
    import torch

    from microdiffusion.engines.diffusion import SlabUNet, save_denoiser

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SlabUNet(widths=(8, 12), blocks=1, embedding=16)
        # A fresh network's last layers are zero; with these, every input matters.
        for name, value in model.named_parameters():
            if "second" in name or "film" in name or "head" in name:
                torch.nn.init.normal_(value, std=0.02)
    save_denoiser(model, path, {"trained": "not at all"})
    return path
