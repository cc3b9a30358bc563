"""rmoe beside PyTorch: runs `rmoe bench` and the peers alternately and prints the ratios.

    python bench/peers/compare.py                              everything (an hour: torch.compile takes minutes a piece)
    python bench/peers/compare.py --workload step --dtype bf16
    python bench/peers/compare.py --device cuda                on a GPU: larger workloads, other ratios
    python bench/peers/compare.py --quick                      for CI: fails when a ratio is below half of the stated

Of one workload and dtype all programs stay resident and take turns, one at a time; those that do not fit into memory at
once run in several heats, each with ours in it. A ratio is taken within a heat, from the best iteration of each.
Exit codes: 0 done, 1 ours cannot run or, with --quick, has a gross regression or nothing beside it, 2 wrong usage or a
busy machine, 77 a CPU without our kernels for bf16, of which the ratios of --quick are.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from workloads import NAMES, TRAINING, WORKLOADS, model_flops

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# How ours is started; it speaks the protocol of peer.py.
OURS = {
    "cpu": {
        "layer": "bench layer --train.dtype={dtype} {stage}",
        "step": "bench step {configs}/bench_llama_{router}.toml --train.dtype={dtype}",
        "span": "bench step {configs}/bench_span_{router}.toml --train.dtype={dtype}",
        "prompt": "bench prompt {configs}/bench_llama_{router}.toml --train.dtype={dtype}",
        "decode": "bench decode {configs}/bench_llama_{router}.toml --train.dtype={dtype}",
    },
    "cuda": {
        "layer": "bench layer --train.block=16384 --train.dtype={dtype} {stage}",
        "step": "bench step {configs}/llama_0.91b_{router}.toml {four} --train.dtype={dtype}",
        "span": "bench step {configs}/enwik8_medium_{router}.toml --train.accumulate=1 --train.dtype={dtype}",
        "prompt": "bench prompt {configs}/llama_0.91b_{router}.toml {four} --train.dtype={dtype}",
        "decode": "bench decode {configs}/llama_0.91b_{router}.toml --train.dtype={dtype}",
    },
}
FOUR = "--train.batch=4 --train.accumulate=1"

GIB = {"layer": 1.5, "step": 5, "span": 4.5, "prompt": 1.5, "decode": 1.5}  # what a process may take

# No fresh pages: what a user who knows glibc can set. Nobody gets these unless the label says "tuned".
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}



VARIANTS = ("eager", "grouped", "compiled", "onednn", "mixtral-eager", "mixtral-grouped_mm", "mixtral-batched_mm")


@dataclass(frozen=True)
class Stated:
    """What was promised: the least times that ours is faster than the best of a set of peers, the most of RMoE over
    SMoE, of ours, and the most seconds of a first step."""

    speed: list[tuple[str, str, str, float]]  # workload, dtype, set, ratio
    overhead_time: dict[str, float]
    overhead_memory: dict[str, float]
    memory_over_peers: float | None = None  # of the training step, over the least of the peers
    first_step_s: float | None = None


STATED = {
    "cpu": Stated(
        speed=[
            ("layer", "bf16", "best", 1.4), ("step", "bf16", "tuned", 1.5), ("step", "bf16", "untuned eager", 5.0),
            ("span", "bf16", "best", 2.2), ("decode", "bf16", "best", 3.2), ("prompt", "bf16", "best", 1.3),
            *((w, "fp32", peers, ratio) for w in TRAINING
              for peers, ratio in (("no oneDNN setting", 2.0), ("best", 1.4)))],
        # The recurrent stage's share of the FLOPs, or what is bearable.
        overhead_time={"layer": 1.035, "step": 1.045, "span": 1.078, "decode": 1.04},
        overhead_memory=dict.fromkeys(TRAINING, 1.015), memory_over_peers=0.8, first_step_s=1.0),
    "cuda": Stated(
        speed=[("step", "bf16", "best", 1.3), ("span", "bf16", "best", 4.0), ("decode", "bf16", "best", 2.0)],
        # The paper's.
        overhead_time={"step": 1.004, "span": 1.013}, overhead_memory={"step": 1.014, "span": 1.032}),
}

SETS = {
    "best": lambda p: True,
    "tuned": lambda p: p.tuned,
    "untuned eager": lambda p: p.variant == "eager" and not p.tuned,
    "no oneDNN setting": lambda p: p.variant != "onednn",
}


@dataclass
class Program:
    """One resident process and its results."""

    variant: str  # "rmoe" is ours
    router: str
    tuned: bool
    command: list[str]
    first_step_s: float = 0.0
    best_s: float = float("inf")
    medians_s: list[float] = field(default_factory=list)
    peak_memory_bytes: int = 0
    ratio: float = 0.0  # time over the time of ours in the same heat
    failure: str = ""
    isa: str = ""  # of ours
    units: float = 1  # that a round's times are for: decoding counts tokens
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        return f"{self.variant} {self.router}{' tuned' if self.tuned else ''}"

    def start(self, timeout_s: float) -> None:
        """Starts it and waits for its ready line; sets `failure` when there is none."""
        environment = {k: v for k, v in os.environ.items() if k not in TUNED} | (TUNED if self.tuned else {})
        try:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE, text=True, env=environment)
        except OSError as error:
            self.failure = str(error)
            return
        errors: list[str] = []  # read all along, so that the pipe never fills; the last line is for the message
        reader = threading.Thread(target=lambda p=self.process: errors.extend(p.stderr), daemon=True)
        reader.start()
        answer = self._read(timeout_s)
        if answer and answer.get("ready"):
            self.first_step_s = answer.get("first_s", answer.get("warmup_s", 0.0))
            self.isa = answer.get("isa", "")
            if answer.get("workload") == "decode":
                self.units = answer["tokens"]
            self.peak_memory_bytes = answer.get("peak_memory_bytes", 0)
        else:
            self.stop()
            reader.join(1)
            last = [line.strip() for line in errors if line.strip() and not line.lstrip().startswith("help:")][-1:]
            self.failure = (answer or {}).get("reason") or (last[0] if last else "no answer")

    def round(self, timeout_s: float) -> float:
        """One round: its best time; raises RuntimeError when the process is gone."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except OSError:
            raise RuntimeError(f"{self.label}: ended during a round") from None
        answer = self._read(timeout_s)
        if not answer:
            raise RuntimeError(f"{self.label}: no answer to a round")
        best = answer["best_s"] / self.units
        self.best_s = min(self.best_s, best)
        self.medians_s.append(answer["median_s"] / self.units)
        self.peak_memory_bytes = max(self.peak_memory_bytes, answer.get("peak_memory_bytes", 0))
        return best

    def _read(self, timeout_s: float) -> dict | None:
        watchdog = threading.Timer(timeout_s, self.process.kill)
        watchdog.start()
        try:
            line = self.process.stdout.readline()
            return json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            return None
        finally:
            watchdog.cancel()

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            try:
                self.process.stdin.close()
                self.process.wait(20)
            except (OSError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()
        self.process = None


# ---------------------------------------------------------------- the machine


def _busy_ticks() -> float:
    user, nice, system, _, _, irq, soft, steal = map(int, pathlib.Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def busy_cpus(seconds: float = 2.0) -> float:
    """CPUs' worth of work that others do now."""
    begin = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - begin) / seconds


def _line(path: str, key: str) -> str:
    """What stands after `key` and a colon in a file of /proc; "?" where it does not."""
    lines = pathlib.Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "?")


def available_bytes() -> int:
    return int(_line("/proc/meminfo", "MemAvailable").split()[0]) * 1024


def machine_name(device: str) -> str:
    if device == "cpu":
        return _line("/proc/cpuinfo", "model name")
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


# ---------------------------------------------------------------- running


def ours(workload: str, dtype: str, router: str, args: argparse.Namespace) -> Program:
    command = OURS[args.device][workload].format(configs=ROOT / "configs", router=router, dtype=dtype, four=FOUR,
                                                 stage='--model.moe.stage={kind="none"}' if router == "smoe" else "")
    return Program("rmoe", router, False,
                   [args.rmoe, "--threads", str(args.threads), *command.split(), "--device", args.device, "--json",
                    "--serve"])


def peers(workload: str, dtype: str, args: argparse.Namespace) -> list[Program]:
    """Every variant, on a CPU untuned and tuned; Mixtral with its linear router, the others recurrent as ours is."""
    on_cpu = args.device == "cpu"
    variants = ["eager", "grouped"] if args.quick else [
        v for v in VARIANTS if (v != "onednn" or dtype == "fp32" and on_cpu)
        and (not v.startswith("mixtral") or workload in ("step", "prompt", "decode"))]
    if args.variants:
        variants = [v for v in variants if v in args.variants]
    programs = []
    for variant in variants:
        router = "smoe" if variant.startswith("mixtral") else "rmoe"
        command = [args.python, str(HERE / "peer.py"), workload, "--dtype", dtype, "--router", router, "--variant",
                   variant, "--threads", str(args.threads), "--round-s", str(args.round_s), "--device", args.device]
        programs += [Program(variant, router, tuned, command) for tuned in ((False, True) if on_cpu else (False,))]
    return programs


def heats(programs: list[Program], resident: int) -> Iterator[list[Program]]:
    for begin in range(0, len(programs), resident):
        yield programs[begin : begin + resident]


def run(workload: str, dtype: str, args: argparse.Namespace) -> dict[str, Program]:
    """All programs of one workload and dtype, by label."""
    results: dict[str, Program] = {}
    # Two of the places are for ours.
    fit = int(available_bytes() / 2**30 / GIB[workload]) - 2 if args.device == "cpu" else 1
    resident = args.resident or max(1, fit)
    disturbed = rounds = 0
    for heat in heats(peers(workload, dtype, args), resident):
        mine = [ours(workload, dtype, router, args) for router in ("rmoe", "smoe")]
        programs = mine + heat
        for program in programs:
            known = results.get(program.label)
            if known and known.failure:
                program.failure = known.failure
                continue
            print(f"  starting {program.label} ...", file=sys.stderr, flush=True)
            program.start(args.timeout_s)
            if program.failure and not known:
                print(f"{workload} {dtype} {program.label}: cannot run: {program.failure}", flush=True)
        for _ in range(args.rounds):
            for program in programs:
                if program.failure:
                    continue
                busy, begin, own = _busy_ticks(), time.monotonic(), _cpu_seconds(program)
                try:
                    program.round(args.timeout_s)
                except RuntimeError as error:
                    program.failure = str(error)
                    print(f"{workload} {dtype} {error}", flush=True)
                    continue
                others = _busy_ticks() - busy - (_cpu_seconds(program) - own)
                disturbed += others > 0.1 * (time.monotonic() - begin)
                rounds += 1
        for program in programs:
            program.stop()
            if not program.failure and not mine[0].failure:
                program.ratio = program.best_s / mine[0].best_s
            known = results.get(program.label)
            if not known or program.best_s < known.best_s:
                results[program.label] = program
    if disturbed:
        print(f"{workload} {dtype}: others were busy in {disturbed} of {rounds} rounds", flush=True)
    return results


def _cpu_seconds(program: Program) -> float:
    try:
        fields = pathlib.Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- the table


@dataclass
class Row:
    """One line of the table of stated ratios. at_most: `value` must not exceed `stated`."""

    name: str
    value: float
    stated: float
    at_most: bool
    detail: str
    absolute: bool = False  # seconds, which depend on the machine

    @property
    def gross(self) -> bool:
        """Worse than what is stated by more than a factor of two; never a time."""
        return not self.absolute and (self.value > 2 * self.stated if self.at_most else self.value < self.stated / 2)

    @property
    def met(self) -> bool:
        return self.value <= self.stated if self.at_most else self.value >= self.stated


def rows(all_results: dict[tuple[str, str], dict[str, Program]], promised: Stated) -> Iterator[Row]:
    for workload, dtype, which, stated in promised.speed:
        results = all_results.get((workload, dtype), {})
        rivals = [p for p in results.values() if p.variant != "rmoe" and p.ratio and SETS[which](p)]
        if rivals:
            rival = min(rivals, key=lambda p: p.ratio)
            yield Row(f"{workload} {dtype}: speed over {which}", rival.ratio, stated, False, rival.label)
    for (workload, dtype), results in all_results.items():
        rmoe, smoe = results.get("rmoe rmoe"), results.get("rmoe smoe")
        if rmoe and not rmoe.failure and smoe and not smoe.failure:
            if workload in promised.overhead_time:
                yield Row(f"{workload} {dtype}: time of RMoE over SMoE", rmoe.best_s / smoe.best_s,
                          promised.overhead_time[workload], True, "")
            if workload in promised.overhead_memory:
                yield Row(f"{workload} {dtype}: peak memory of RMoE over SMoE",
                          rmoe.peak_memory_bytes / smoe.peak_memory_bytes, promised.overhead_memory[workload], True, "")
        if workload == "step" and rmoe and not rmoe.failure:
            rivals = [p for p in results.values() if p.variant != "rmoe" and not p.failure]
            if rivals and promised.memory_over_peers:
                rival = min(rivals, key=lambda p: p.peak_memory_bytes)
                yield Row(f"{workload} {dtype}: peak memory over the least of the peers",
                          rmoe.peak_memory_bytes / rival.peak_memory_bytes, promised.memory_over_peers, True,
                          rival.label)
            if promised.first_step_s:
                yield Row(f"{workload} {dtype}: first step, s", rmoe.first_step_s, promised.first_step_s, True, "",
                          absolute=True)


def print_results(workload: str, dtype: str, device: str, results: dict[str, Program]) -> None:
    unit = "tokens/s" if workload == "decode" else "GFLOP/s"
    print(f"\n{workload} {dtype}\n{'program':32}{'best ms':>10}{'median ms':>11}{unit:>10}{'peak MiB':>10}"
          f"{'first s':>9}{'over ours':>11}")
    for program in sorted((p for p in results.values() if not p.failure), key=lambda p: p.best_s):
        done = 1 if workload == "decode" else model_flops(workload, program.router, WORKLOADS[device][workload]) / 1e9
        median = sorted(program.medians_s)[len(program.medians_s) // 2]
        ratio = f"{program.ratio:.2f}" if program.ratio else "-"
        print(f"{program.label:32}{program.best_s * 1e3:10.2f}{median * 1e3:11.2f}{done / program.best_s:10.0f}"
              f"{program.peak_memory_bytes / 2**20:10.0f}{program.first_step_s:9.2f}{ratio:>11}")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=NAMES, help="only this one (may be repeated)")
    parser.add_argument("--device", choices=WORKLOADS, default="cpu")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="only this one")
    parser.add_argument("--variants", type=lambda text: text.split(","), help="only these, separated by commas")
    parser.add_argument("--quick", action="store_true", help="few rounds, two variants; exit 1 on gross regressions")
    parser.add_argument("--json", type=pathlib.Path, help="write everything measured into this file")
    parser.add_argument("--rmoe", default=str(ROOT / "build/release/rmoe"), help="the program")
    parser.add_argument("--python", default=sys.executable, help="the Python of the peers")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, help="turns of every program; default 5, 2 with --quick")
    parser.add_argument("--round-s", type=float, help="seconds that a turn of a peer takes, about; default 1.5, 0.5")
    parser.add_argument("--resident", type=int, default=0, help="peers in memory at once; default: as memory allows")
    parser.add_argument("--timeout-s", type=float, default=900, help="for a start or a turn")
    parser.add_argument("--allow-busy", action="store_true", help="measure although others use the machine")
    args = parser.parse_args()
    for variant in args.variants or []:
        if variant not in VARIANTS:
            parser.error(f"--variants: unknown '{variant}', expected some of {', '.join(VARIANTS)}")
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.round_s = args.round_s or (0.5 if args.quick else 1.5)

    busy = busy_cpus()
    if busy > 0.2:
        print(f"compare: others use {busy:.1f} CPUs", file=sys.stderr)
        if not (args.allow_busy or args.quick):
            print("  help: wait until the machine is quiet, or --allow-busy", file=sys.stderr)
            return 2

    workloads = args.workload or (["layer", "step"] if args.quick else list(NAMES))
    only_bf16 = args.quick or args.device == "cuda"
    dtypes = {w: ["bf16"] if only_bf16 or w in ("decode", "prompt") else ["bf16", "fp32"] for w in workloads}
    if args.dtype:
        dtypes = dict.fromkeys(workloads, [args.dtype])
    all_results = {}
    for workload in workloads:
        for dtype in dtypes[workload]:
            all_results[workload, dtype] = run(workload, dtype, args)
            print_results(workload, dtype, args.device, all_results[workload, dtype])

    table = list(rows(all_results, STATED[args.device]))
    if table:
        print(f"\n{'ratio':52}{'measured':>10}{'stated':>10}  met")
    for row in table:
        bound = f"{'<=' if row.at_most else '>='} {row.stated:g}"
        print(f"{row.name:52}{row.value:10.3f}{bound:>10}  {'yes' if row.met else 'GROSS' if row.gross else 'no'}"
              f"{'  ' + row.detail if row.detail else ''}")
    if args.json:
        programs = [
            {"workload": w, "dtype": d, "model_flops": model_flops(w, p.router, WORKLOADS[args.device][w]),
             **{k: v for k, v in vars(p).items() if k != "process"},
             "best_s": None if p.failure else p.best_s}
            for (w, d), results in all_results.items() for p in results.values()]
        args.json.write_text(json.dumps({
            "machine": machine_name(args.device), "threads": args.threads, "busy_cpus_before": busy,
            "programs": programs,
            "ratios": [asdict(row) | {"met": row.met, "gross": row.gross} for row in table]}, indent=1) + "\n")
    if any(p.failure for results in all_results.values() for p in results.values() if p.variant == "rmoe"):
        return 1
    if not args.quick:
        return 0
    if any(p.isa in ("plain", "avx2", "avx512") for results in all_results.values() for p in results.values()):
        print("compare: no kernels for bf16 on this CPU: no ratio of --quick holds")
        return 77
    alone = [f"{w} {d}" for (w, d), results in all_results.items() if not any(p.ratio for p in results.values()
                                                                              if p.variant != "rmoe")]
    if alone:
        print(f"compare: no peer ran beside ours in {', '.join(alone)}")
    return int(bool(alone) or any(row.gross for row in table))


if __name__ == "__main__":
    sys.exit(main())
