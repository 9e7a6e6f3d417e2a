"""The parts of bench/gpu/run.sh: their arguments, their time, what they run on. See README.md."""

import argparse
import importlib
import os
import pathlib
import sys
import time

import machine
import place
import records

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PARTS = ("parity", "roofline", "serve", "embed", "peers")
# Of one part. A command on the GPU machine is ended after ten minutes, so a part ends itself before.
PART_SECONDS, DRY_SECONDS = 510.0, 150.0


class Bench:
    """What a part works with: the place it runs on, the time it has, and where its figures go."""

    def __init__(self, part, where, results, seconds, dry):
        self.part, self.place, self.results, self.dry = part, where, results, dry
        self.deadline = time.monotonic() + seconds

    def left(self):
        return self.deadline - time.monotonic()

    def pick(self, real, dry):
        """A size: of the measurement, or of its rehearsal."""
        return dry if self.dry else real

    def figure(self, name, value, unit, command=None, **more):
        self._add(name, "ok", value=value, unit=unit, command=command, **more)

    def skip(self, name, reason):
        """Not measured, by this script's choice: time."""
        self._add(name, "skipped", reason=reason)

    def unavailable(self, name, reason):
        """Not measured, for want of something."""
        self._add(name, "unavailable", reason=reason)

    def failed(self, name, reason, command=None, **more):
        """It was tried, and broke, or what it must show does not hold."""
        self._add(name, "failed", reason=reason, command=command, **more)

    def findings(self, found):
        """Many records at once: (name, value, unit, more)."""
        made = [self._made(name, "ok" if more.get("holds", True) else "failed", value=value, unit=unit, **more)
                for name, value, unit, more in found]
        self.results.add(*made)
        print(f"  {len(made)} findings, {sum(record['status'] == 'failed' for record in made)} do not hold", flush=True)

    def has(self, name, seconds):
        """Whether there is time for what takes about so long; if not, it is recorded as skipped."""
        if self.left() >= seconds:
            return True
        self.skip(name, f"time: it takes about {seconds:.0f} s, {max(0, self.left()):.0f} s are left")
        return False

    def run(self, name, words, seconds, **more):
        """Run a command that `name` needs; its output, or None with the reason recorded."""
        if not self.has(name, min(seconds, 10.0)):
            return None
        # torch brings CUDA's libraries itself, in the versions it was built with.
        environment = self.place.environment(with_libraries=words[0] != sys.executable)
        done = place.run(words, min(seconds, max(1.0, self.left() - 5)), environment, **more)
        if done.status == "ok":
            return done.output
        shown = " ".join(map(str, words))
        if done.status == "timeout":
            self._add(name, "skipped", reason=f"time: it ran for {done.seconds:.0f} s and was ended", command=shown)
        else:
            self.failed(name, done.reason, command=shown)
        return None

    def _made(self, name, status, **more):
        more = {key: value for key, value in more.items() if value is not None}
        return {"part": self.part, "figure": name, "status": status, **more, "dry_run": self.dry,
                "device": self.place.device, "machine": machine.facts(), "commit": machine.commit(),
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}

    def _add(self, name, status, **more):
        record = self._made(name, status, **more)
        self.results.add(record)
        value = record.get("value")
        shown = f"{value:.6g}" if isinstance(value, float) else value
        what = f"{shown} {record.get('unit', '')}" if status == "ok" else f"{status}: {record.get('reason')}"
        print(f"  figure={self.part}.{name} {what}", flush=True)


def run_part(part, options, where, results):
    seconds = options.seconds or (DRY_SECONDS if options.dry_run else PART_SECONDS)
    bench = Bench(part, where, results, seconds, options.dry_run)
    print(f"==> {part}, on {where.device}, at most {seconds:.0f} s", flush=True)
    try:
        importlib.import_module(f"{part}_part").run(bench)
    except Exception as error:  # noqa: BLE001 - one part's end must not take the others' figures
        bench.failed("part", f"{type(error).__name__}: {error}")
    print(f"    {part}: {seconds - bench.left():.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="run.sh", description="Measure Weir on a GPU; see bench/gpu/README.md.")
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, to see that every part works")
    parser.add_argument("--out", type=pathlib.Path, help="folder of results.json [bench/gpu; dry: target/gpu-dry-run]")
    parser.add_argument("--scratch", type=pathlib.Path, help="folder for made models, which stay there")
    parser.add_argument("--seconds", type=float, help="of each part")
    options = parser.parse_args()
    out = options.out or (ROOT / "target/gpu-dry-run" if options.dry_run else ROOT / "bench/gpu")
    out.mkdir(parents=True, exist_ok=True)
    where = place.find(options.dry_run, options.scratch)
    if isinstance(where, str):
        sys.exit(f"run.sh: {where}")
    where.describe()
    results = records.Results(out / "results.json")
    before = len(results.all)
    for part in PARTS if options.part == "all" else (options.part,):
        run_part(part, options, where, results)
    where.close()
    counts = results.counts(before)
    print(f"{out / 'results.json'}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    sys.exit(1 if counts.get("failed") else 0)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
