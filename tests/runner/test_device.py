import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.config import read_settings, visible_gpus
from loopgraph_mcp.errors import ConfigError, WorkspaceError
from loopgraph_mcp.runner import device, load
from loopgraph_mcp.runner.locks import is_held, try_lock

UUIDS = [f"GPU-{n}{n}{n}{n}{n}{n}{n}{n}-0000-1111-2222-333333333333" for n in range(4)]
SLICE = "MIG-12345678-aaaa-bbbb-cccc-dddddddddddd"
# What nvidia-smi prints on a machine with four GPUs, the last of which is cut into slices.
NVIDIA_SMI = f"""#!/bin/sh
case "$*" in
  *index,name*) for uuid in {" ".join(UUIDS[:3])}; do echo "$((n)), NVIDIA H100 80GB HBM3, $uuid"; n=$((n + 1)); done
    echo "3, NVIDIA A100, PG506, {UUIDS[3]}" ;;
  *utilization.gpu*"-i 1") echo 37 ;;
  *utilization.gpu*"-i 2") echo 5 ;;
  -L) echo "GPU 3: NVIDIA A100, PG506 (UUID: {UUIDS[3]})"; echo "  MIG 1g.5gb      Device  0: (UUID: {SLICE})" ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text(NVIDIA_SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    device.find_devices.cache_clear()
    yield
    device.find_devices.cache_clear()


def chosen(listed: str | None, wanted: str | None = None, count: int | None = None) -> device.Device:
    variables = {"CUDA_VISIBLE_DEVICES": listed, "LOOPGRAPH_DEVICE": wanted}
    settings = read_settings({name: value for name, value in variables.items() if value is not None}, Path("/"))
    return device.choose_device(settings.device, settings.visible_gpus, count)


def sees(listed: str | None, wanted: str | None = None, count: int | None = None) -> str:
    return chosen(listed, wanted, count).environment()["CUDA_VISIBLE_DEVICES"]


@pytest.mark.usefixtures("four_gpus")
def test_gpus_come_first_and_each_run_sees_its_own() -> None:
    first = device.choose_device(None)
    second = device.choose_device("cuda:1")
    assert (first.slot, second.slot) == ("cuda-0", "cuda-1")
    assert first.label == second.label == "cuda: NVIDIA H100 80GB HBM3"
    assert second.environment() == {"CUDA_VISIBLE_DEVICES": "1"}
    assert device.choose_device("cpu").environment() == {"CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(ConfigError, match="cuda:0, cuda:1, cuda:2, cuda:3, cpu:0"):
        device.choose_device("cuda:7")
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        device.choose_device("tpu")


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        ("1", "1"),
        ("2,3", "2,3"),
        ("1,0", "1,0"),
        (" 2 , 3", "2,3"),
        ("3,-1,0", "3"),
        ("9", "9"),
        (UUIDS[2], UUIDS[2]),
        ("GPU-2222,0", "GPU-2222,0"),
        ("GPU-99999999-ffff", "GPU-99999999-ffff"),
        (f"{SLICE},0", f"{SLICE},0"),
        ("MIG-GPU-99999999-ffff/1/0", "MIG-GPU-99999999-ffff/1/0"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("none,0", ""),
        (None, "0"),
    ],
)
def test_a_run_sees_the_gpu_that_its_user_has_given_as_it_was_named(listed: str | None, seen: str) -> None:
    assert sees(listed) == seen
    assert chosen(listed).kind == ("cuda" if seen else "cpu")


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("listed", "wanted", "count", "seen"),
    [
        (None, "cuda", None, "0"),
        (None, "cuda:2,3", None, "2,3"),
        (None, "all", None, "0,1,2,3"),
        (None, None, 2, "0,1"),
        (None, "cuda:1,2,3", 2, "1,2"),
        (None, f"cuda:{UUIDS[1]}", None, UUIDS[1]),
        (None, "cuda:GPU-99999999-ffff", None, "GPU-99999999-ffff"),
        ("2,3", "all", None, "2,3"),
        ("2,3", None, 2, "2,3"),
        ("2,3", None, 1, "2"),
        ("2,3", "cuda", None, "2"),
        ("2,3", "cuda:3", None, "3"),
        (f"{UUIDS[2]},1", "cuda:2", None, UUIDS[2]),
        ("2,1", f"cuda:{UUIDS[2]}", None, "2"),
        (UUIDS[0], "cuda:GPU-0000", None, UUIDS[0]),
        ("GPU-99999999-ffff", "cuda:GPU-99999999", None, "GPU-99999999-ffff"),
        (f"2,{SLICE}", None, 2, f"2,{SLICE}"),
        ("2,3", "cpu", None, ""),
    ],
)
def test_a_named_device_is_one_of_those_given(
    listed: str | None, wanted: str | None, count: int | None, seen: str
) -> None:
    assert sees(listed, wanted, count) == seen


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ("2,3", "cuda:0"),
        ("", "cuda"),
        ("-1", "all"),
        ("2", "cuda:2,3"),
        (UUIDS[1], f"cuda:{UUIDS[2]}"),
        ("2", "cuda:2,,"),
    ],
)
def test_a_named_device_never_widens_what_is_given(listed: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES is") as refused:
        sees(listed, wanted)
    assert f"LOOPGRAPH_DEVICE is {wanted!r}" in str(refused.value)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("listed", "wanted", "count"),
    [
        ("2", None, 2),
        ("", None, 2),
        (None, "cuda:1", 2),
        (None, "cpu", 2),
        ("2,2", None, 2),
        (f"2,{UUIDS[2]}", None, 2),
    ],
)
def test_fewer_gpus_than_a_run_gets_are_refused(listed: str | None, wanted: str | None, count: int) -> None:
    with pytest.raises(WorkspaceError, match=r"devices_per_run is 2, but a run can get .*; lower devices_per_run"):
        sees(listed, wanted, count)


@pytest.mark.usefixtures("four_gpus")
def test_a_device_is_labelled_by_what_is_known_of_it() -> None:
    assert chosen(None, "cuda:1,2").label == "cuda: NVIDIA H100 80GB HBM3 x2"
    assert chosen(UUIDS[2]).label == chosen("2").label == chosen("GPU-2222").label == "cuda: NVIDIA H100 80GB HBM3"
    assert chosen("2,3", "all").label == "cuda: NVIDIA H100 80GB HBM3 + NVIDIA A100, PG506"
    assert chosen(SLICE).label == "cuda: NVIDIA A100, PG506 MIG 1g.5gb"
    assert chosen("GPU-99999999-ffff").label == "cuda: GPU-99999999-ffff"
    assert chosen("7").label == "cuda: GPU 7"


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("listed", ["2", "2,3", UUIDS[1], SLICE, "MIG-GPU-99999999-ffff/1/0", "7", ""])
def test_the_device_of_a_slot_is_the_one_that_was_chosen(listed: str) -> None:
    found = chosen(listed, None, max(len(listed.split(",")), 1))
    again = device.device_at(found.slot)
    assert (again.label, again.environment(), again.locks) == (found.label, found.environment(), found.locks)


@pytest.mark.usefixtures("four_gpus")
def test_one_card_is_one_lock_however_it_is_named() -> None:
    assert chosen(UUIDS[2]).locks == chosen("GPU-2222").locks == chosen("2").locks == ("cuda-2",)
    assert chosen(None, "cuda:3,1").locks == ("cuda-1", "cuda-3")
    assert "/" not in chosen("MIG-GPU-99999999-ffff/1/0").locks[0]


@pytest.mark.usefixtures("four_gpus")
def test_slots_that_share_a_card_wait_for_one_another_and_others_do_not() -> None:
    others = ["cuda-0", "cuda-1+2", f"cuda-{UUIDS[2]}", "cuda-3", "cpu-0"]
    assert device.slots_beside("cuda-1", others) == ["cuda-1", "cuda-1+2", f"cuda-{UUIDS[2]}"]
    assert device.slots_beside("cuda-0", others) == ["cuda-0"]
    assert device.slots_beside("cpu-0", others) == ["cpu-0"]


IDS = st.one_of(
    st.integers(0, 9).map(str), st.from_regex(r"(GPU|MIG)-[0-9a-f]{4,8}", fullmatch=True), st.sampled_from(UUIDS)
)


@given(st.lists(IDS, max_size=5), st.text(max_size=8))
def test_no_id_that_was_not_given_is_read(ids: list[str], beyond: str) -> None:
    read = visible_gpus(",".join(ids))
    assert read == tuple(ids)
    assert set(visible_gpus(",".join([*ids, f"!{beyond}", "0"])) or ()) <= set(ids)


@pytest.mark.usefixtures("four_gpus")
def test_whatever_is_asked_for_a_run_sees_only_what_is_given() -> None:
    @given(
        st.lists(IDS, min_size=1, max_size=4),
        st.one_of(
            st.none(), st.just("all"), st.lists(IDS, min_size=1, max_size=3).map(lambda x: f"cuda:{','.join(x)}")
        ),
        st.integers(1, 3),
    )
    def check(ids: list[str], wanted: str | None, count: int) -> None:
        try:
            seen = sees(",".join(ids), wanted, count).split(",")
        except (ConfigError, WorkspaceError):
            return
        assert set(seen) <= set(ids)
        assert len(seen) >= count
        assert len(chosen(",".join(ids), wanted, count).locks) == len(seen)

    check()


@given(st.text(max_size=200))
def test_whatever_nvidia_smi_prints_is_read_without_a_fault(printed: str) -> None:
    assert all(each.ids[0].isdigit() and each.name for each in device.parse_gpus(printed))
    assert all(uuid for uuid, _ in device.parse_slices(printed))


def test_others_share_is_what_is_busy_beside_ones_own() -> None:
    assert load.others_share(busy_s=20.0, own_s=8.0, elapsed_s=10.0, cores=2) == pytest.approx(0.6)
    assert load.others_share(busy_s=7.9, own_s=8.0, elapsed_s=10.0, cores=2) == 0.0
    assert load.others_share(busy_s=50.0, own_s=0.0, elapsed_s=10.0, cores=2) == 1.0


def test_work_of_others_during_a_run_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = device.choose_device("cpu")
    assert load.LoadMeter.start(cpu).read() is None  # too short to tell
    monkeypatch.setattr(load, "MIN_S", 0.2)
    burn = [sys.executable, "-c", "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"]
    others = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 1)]
    time.sleep(0.3)
    meter = load.LoadMeter.start(cpu)
    time.sleep(0.5)
    seen = meter.read()
    for other in others:
        other.wait()
    assert seen is not None
    assert seen > 0.4


@pytest.mark.usefixtures("four_gpus")
def test_the_busiest_of_a_runs_gpus_is_what_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MIN_S", 0.0)
    monkeypatch.setattr(load, "SETTLE_S", 0.0)
    assert load.LoadMeter.start(chosen(UUIDS[1])).read() == pytest.approx(0.37)
    assert load.LoadMeter.start(chosen("2,1,0", "all")).read() == pytest.approx(0.37)
    assert load.LoadMeter.start(chosen("0")).read() is None


def test_a_lock_is_held_by_one_and_seen_by_all(tmp_path: Path) -> None:
    assert not is_held(tmp_path, "cpu-0")
    with try_lock(tmp_path, "cpu-0") as mine:
        assert mine
        assert is_held(tmp_path, "cpu-0")
        with try_lock(tmp_path, "cpu-0") as theirs:
            assert not theirs
    assert not is_held(tmp_path, "cpu-0")
