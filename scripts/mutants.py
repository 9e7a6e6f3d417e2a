#!/usr/bin/env python3
"""Break the scheduler, one line at a time, and see that the test which guards that line fails.

Each mutant below names an invariant, a place in scheduler/src (an old text, which must be there exactly once, and a new one), and the tests of
which one must fail. The scheduler is copied, with nothing else of the workspace, to target/mutants; there each mutant is made, built and
tested, and unmade. First of all the tests must pass unmutated. A mutant that does not build, or that survives, fails the run.

    scripts/mutants.py            all of them: some ten minutes
    scripts/mutants.py NAME..     these
    scripts/mutants.py --check    only that the old texts are there and docs/proofs.md lists the mutants; seconds
    scripts/mutants.py --write    write that list

Standard library only.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCHEDULER = os.path.join(ROOT, "scheduler")
DOCS = os.path.join(ROOT, "docs", "proofs.md")
SCRATCH = os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"), "mutants")
# Long enough for the slowest test on a slow machine; a mutant may make the scheduler plan for ever.
PATIENCE = 300
BUILD_PATIENCE = 1800
HISTORIES = "proofs::no_invariant_breaks_with_all_faults_on"

# (invariant, [(name, file, old, new, test)])
TABLE = [
    ("Blocks are conserved", [
        ("a_freed_block_is_forgotten", "blocks.rs",
         "        self.free.push(at);\n    }", "    }", HISTORIES),
        ("a_shared_block_is_released_once_too_often", "blocks.rs",
         "        if refs > 0 {\n            return;\n        }\n        let cached", "        let cached", HISTORIES),
    ]),
    ("A block is written by one request at a time, and read only where its text was computed", [
        ("a_block_is_found_before_it_is_computed", "room.rs",
         "if pool.blocks[at as usize].state == BlockState::Coming {",
         "if pool.blocks[at as usize].state == BlockState::Free {", HISTORIES),
        ("a_block_is_published_when_it_is_planned", "passage.rs",
         "let full = request.computed / BLOCK_LEN;", "let full = request.planned / BLOCK_LEN;", HISTORIES),
        ("blocks_are_given_away_under_rows_in_flight", "scheduler.rs",
         "        if in_flight == 0 {\n            self.discard(slot);\n            return;\n        }",
         "        self.devices[d].release_blocks(&mut self.requests, &mut self.tenants, slot);\n"
         "        if in_flight == 0 {\n            self.discard(slot);\n            return;\n        }", HISTORIES),
        ("blocks_of_a_failed_row_stay_in_the_cache", "step.rs",
         "            device.withdraw(requests, tenants, slot);\n            device.leave_lane",
         "            device.leave_lane", HISTORIES),
    ]),
    ("A block is never shared across tenants", [
        ("the_index_forgets_whose_a_block_is", "prefix.rs",
         "        let tag = tag(tenant, hash);\n        let mut place = self.home(tag);\n        loop {\n            let entry = self.entries[place];\n"
         "            if entry.block == NONE {\n                return None;",
         "        let cached = |entry: &&Entry| entry.block != NONE && blocks[entry.block as usize].hash == *hash;\n"
         "        let tenant = self.entries.iter().find(cached).map_or(tenant, |entry| blocks[entry.block as usize].owner);\n"
         "        let tag = tag(tenant, hash);\n        let mut place = self.home(tag);\n        loop {\n            let entry = self.entries[place];\n"
         "            if entry.block == NONE {\n                return None;", HISTORIES),
    ]),
    ("Each request ends once", [
        ("a_cancelled_request_settles_with_every_row", "step.rs",
         "                if in_flight == 0 {\n                    match state {",
         "                {\n                    match state {", HISTORIES),
        ("a_cancelled_request_never_settles", "step.rs",
         "                        _ => self.settle(now, slot, ending),", "                        _ => {}", HISTORIES),
        ("a_request_is_preempted_once_too_often", "room.rs",
         "(request.preemptions < self.preemptions_max || dry)", "(request.preemptions <= self.preemptions_max || dry)",
         "histories::random_small_worlds_neither_break_nor_stand_still"),
    ]),
    ("Charges, idle time and the operator's add up to wall time", [
        ("redo_is_nobodys", "step.rs",
         "device.operator += redo + (due - bill);", "device.operator += due - bill;", HISTORIES),
        ("a_row_is_billed_for_its_redo", "step.rs",
         "        account.charge += bill;", "        account.charge += due + redo;", HISTORIES),
        ("idle_time_is_the_operators", "device.rs",
         "            true => self.idle += gap,", "            true => self.operator += gap,", HISTORIES),
        ("the_rest_of_a_step_is_lost", "device.rs",
         "self.operator += open - time - left_open;", "self.operator += open - time;", HISTORIES),
        ("what_a_loss_undid_is_billed_again", "admit.rs",
         "(request.redo_until, request.redo_free, request.pinned) = (redo, true, only.is_some());",
         "(request.redo_until, request.redo_free, request.pinned) = (redo.min(0), true, only.is_some());",
         "recovery::what_was_computed_before_a_loss_is_computed_again_at_the_operators_cost"),
    ]),
    ("A grant is never overspent", [
        ("a_bill_exceeds_its_grant", "purse.rs",
         "let paid = bill.min(reserve.amount.saturating_add(more));", "let paid = bill;", HISTORIES),
        ("a_grant_never_expires", "purse.rs",
         "self.open && self.expires <= now", "self.open && self.expires <= now && now == Nanos(u64::MAX)", "grants::"),
        ("what_a_lost_device_had_reserved_is_lost", "scheduler.rs",
         "        self.unreserve(d);\n", "", HISTORIES),
    ]),
    ("The service gap stays under its bound", [
        ("weights_count_for_nothing", "share.rs",
         "let weight = u64::from(weight.max(1));", "let weight = u64::from(weight.min(1).max(1));", "shares::"),
        ("service_is_not_counted", "share.rs",
         "        self.measured += time;\n        self.served", "        self.served", HISTORIES),
        ("idleness_is_hoarded", "share.rs",
         "        if self.short_on == 0 {", "        if self.short_on == u32::MAX {", "shares::idle_tenant_gains_no_credit"),
        ("riders_get_ahead_of_those_who_wait_for_another_model", "rival.rs",
         "if self.models.len() == 1 {", "if self.models.len() >= 1 {", "shares::"),
        ("nobody_claims_what_it_is_owed_elsewhere", "fill.rs",
         "        self.claim(d);\n", "        let _ = d;\n",
         "claims::who_waits_for_a_quick_device_is_served_by_a_slow_one_as_far_as_it_is_owed"),
        ("no_device_is_ever_late", "ahead.rs",
         "self.late_at().is_some_and(|at| at <= now)", "self.late_at().is_some_and(|at| at <= now.min(Nanos(0)))",
         "claims::what_waits_for_a_device_that_is_late_goes_elsewhere_and_newcomers_too"),
        ("rows_in_the_step_do_not_count", "fill.rs",
         "time += virtual_time(cost, self.tenants.get(tenant).weight()).max(1);",
         "time += u128::from(cost.0.min(0));", "shares::the_rows_of_one_step_go_to_tenants_in_turn"),
        ("a_prompt_is_held_whole", "share.rs",
         "        self.measured + self.held.min(self.held_max)", "        self.measured + self.held",
         "bound::no_more_than_the_cap_is_held_against_a_tenant_with_a_very_long_prompt"),
    ]),
    ("No device is idle while work fits", [
        ("nobody_pulls", "fill.rs", "            self.pull(d);\n", "            let _ = d;\n", HISTORIES),
        ("limits_never_give_way", "fill.rs",
         "self.devices[d].in_flight.is_empty() && self.plan_step(now, d, plan, Limits::GiveWay)", "false",
         "histories::random_small_worlds_neither_break_nor_stand_still"),
        ("a_drained_devices_queue_stays", "place.rs",
         "                self.move_to(slot, to, model);\n            }\n        }\n    }", "                let _ = (slot, to, model);\n            }\n        }\n    }",
         "devices::"),
    ]),
    ("Nobody starves", [
        ("the_last_comes_first", "admit.rs",
         "        request.rank = rank;", "        request.rank = (u64::MAX - rank.0, rank.1);", HISTORIES),
        ("a_class_never_ages", "admit.rs",
         "config.priority_spacing.0.saturating_mul(u64::from(priority))",
         "(config.priority_spacing.0.max(1) << 40).saturating_mul(u64::from(priority))", "rows::"),
        ("the_parked_are_not_woken", "passage.rs",
         "        while let Some(mut slot) = self.models[m].pool.woken.pop() {",
         "        while let Some(mut slot) = self.models[m].pool.woken.pop().filter(|_| false) {", HISTORIES),
    ]),
]
MUTANTS = [(invariant, *mutant) for invariant, mutants in TABLE for mutant in mutants]
BEGIN, END = "<!-- mutants: scripts/mutants.py --write -->", "<!-- end of mutants -->"


def source(file):
    return os.path.join(SCHEDULER, "src", file)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def listing():
    """The mutants as docs/proofs.md shows them."""
    lines = ["| Invariant | Mutant | In | Noticed by |", "|---|---|---|---|"]
    for invariant, mutants in TABLE:
        for name, file, _, _, test in mutants:
            lines.append(f"| {invariant} | `{name}` | `{file}` | `{test.rstrip(':')}` |")
            invariant = ""
    return "\n".join(lines)


def check():
    """The texts to be mutated are there once, and the docs list the mutants."""
    wrong = []
    for _, name, file, old, _, test in MUTANTS:
        count = read(source(file)).count(old)
        if count != 1:
            wrong.append(f"{name}: {count} places in scheduler/src/{file} read {old!r}")
        module, _, function = test.partition("::")
        tests = read(os.path.join(SCHEDULER, "tests", "facts", f"{module}.rs"))
        if function and f"fn {function}(" not in tests:
            wrong.append(f"{name}: there is no test {test}")
    names = [name for _, name, *_ in MUTANTS]
    if len(names) != len(set(names)):
        wrong.append("two mutants have the same name")
    if f"{BEGIN}\n{listing()}\n{END}" not in read(DOCS):
        wrong.append("docs/proofs.md does not list the mutants as they are: scripts/mutants.py --write")
    return wrong


def rewrite():
    text = read(DOCS)
    start, end = text.index(BEGIN), text.index(END)
    write(DOCS, f"{text[:start]}{BEGIN}\n{listing()}\n{text[end:]}")


def prepare():
    """A workspace of the scheduler alone. Its lock file follows from ours."""
    shutil.rmtree(os.path.join(SCRATCH, "scheduler"), ignore_errors=True)
    os.makedirs(SCRATCH, exist_ok=True)
    # As new files: with the times of the old ones, cargo takes what the last run left, a mutant, for what they were built to.
    shutil.copytree(SCHEDULER, os.path.join(SCRATCH, "scheduler"), ignore=shutil.ignore_patterns("target"), copy_function=shutil.copy)
    manifest = re.sub(r"members = \[.*?\]", 'members = ["scheduler"]', read(os.path.join(ROOT, "Cargo.toml")), count=1)
    manifest = re.sub(r"exclude = \[.*?\]\n", "", manifest)
    manifest = manifest[:manifest.index("[profile.release]")]
    # Mutants are built more often than they run.
    write(os.path.join(SCRATCH, "Cargo.toml"), manifest + (
        "[profile.release]\nopt-level = 1\ncodegen-units = 16\nincremental = true\noverflow-checks = true\n"))
    shutil.copy(os.path.join(ROOT, "Cargo.lock"), SCRATCH)


def cargo(*words):
    cargo_path = os.environ.get("CARGO", "cargo")
    environment = dict(os.environ, CARGO_TARGET_DIR=os.path.join(SCRATCH, "target"), RUST_BACKTRACE="0")
    environment.setdefault("WEIR_PROOFS_REQUESTS", "40000")
    command = [cargo_path, *words[:1], "--release", "--offline", "--quiet", "--test", "facts", *words[1:]]
    # In a group of its own, so that a test which stands still ends with cargo, and does not run on unseen.
    child = subprocess.Popen(command, cwd=os.path.join(SCRATCH, "scheduler"), env=environment, start_new_session=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        said, _ = child.communicate(timeout=BUILD_PATIENCE if words[0] == "build" else PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return None, "it stands still"
    return child.returncode, said


def built():
    code, said = cargo("build")
    return (code == 0, said)


def reason(said):
    """What the failed test complained of."""
    found = re.search(r"panicked at [^\n]*\n([^\n]*)", said)
    return found[1].strip() if found else "failed"


def main():
    words = sys.argv[1:]
    if words == ["--write"]:
        return rewrite()
    wrong = check()
    if wrong:
        sys.exit("mutants: " + "\nmutants: ".join(wrong))
    if words == ["--check"]:
        return print(f"{len(MUTANTS)} mutants, all in their places")
    unknown = set(words) - {name for _, name, *_ in MUTANTS}
    if unknown:
        sys.exit(f"mutants: unknown: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not words or mutant[1] in words]
    prepare()
    ok, said = built()
    if not ok:
        sys.exit("mutants: the scheduler does not build by itself\n" + said)
    for test in sorted({mutant[5] for mutant in chosen}):
        code, said = cargo("test", test)
        if code != 0 or " 0 passed" in said:
            sys.exit(f"mutants: {test} fails without any mutant\n{said}")
    noticed = 0
    for invariant, name, file, old, new, test in chosen:
        started = time.monotonic()
        path = os.path.join(SCRATCH, "scheduler", "src", file)
        text = read(path)
        write(path, text.replace(old, new))
        ok, said = built()
        code, said = cargo("test", test) if ok else (0, said)
        write(path, text)
        verdict = "does not build" if not ok else "SURVIVES" if code == 0 else f"noticed: {reason(said)}"
        noticed += ok and code != 0
        print(f"{name}: {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
        if not ok:
            print(said, flush=True)
    print(f"figure=1.mutants value={len(chosen)} noticed={noticed} invariants={len({mutant[0] for mutant in chosen})}")
    sys.exit(0 if noticed == len(chosen) else 1)


if __name__ == "__main__":
    main()
