//! When the next step is planned while one runs.

use crate::rig::*;
use weir_scheduler::*;

/// A device whose steps take `time`, learnt, with one text running and a step of it in flight.
fn busy(time: Nanos) -> Rig {
    let mut rig = Rig::new(64);
    for _ in 0..40 {
        rig.ask(1, 10, 1);
        rig.step_at(|_| time);
    }
    let mut scheduler = rig.scheduler.clone();
    scheduler.set_lead(Config::default().lead_min);
    rig.scheduler = scheduler;
    rig.ask(1, 10, 50);
    rig
}

#[test]
fn the_next_step_is_planned_shortly_before_the_one_that_runs_should_end() {
    let mut rig = busy(Nanos::from_millis(40));
    let began = rig.now;
    let plan = rig.plan().unwrap();
    assert!(rig.plan().is_none(), "it is too early");
    let due = rig.scheduler.next_deadline().unwrap() - began;
    assert!(due > Nanos::from_millis(33) && due < Nanos::from_millis(37), "an eighth before the end: {due:?}");
    // Who comes in the meantime is in the very next step.
    rig.now = began + Nanos::from_millis(30);
    let newcomer = rig.ask(2, 20, 5);
    assert!(rig.plan().is_none());
    rig.now = began + due;
    let next = rig.plan().expect("it is time");
    assert!(row(&next, newcomer).is_some());
    assert_eq!(rig.scheduler.next_deadline(), None);
    rig.now = began;
    rig.finish_with(&plan, Nanos::from_millis(40), |_| RowOutcome::Advanced);
}

#[test]
fn a_report_that_comes_early_makes_it_time() {
    let mut rig = busy(Nanos::from_millis(40));
    let plan = rig.plan().unwrap();
    assert!(rig.plan().is_none());
    rig.finish_with(&plan, Nanos::from_millis(3), |_| RowOutcome::Advanced);
    assert_eq!(rig.scheduler.next_deadline(), None);
    assert!(rig.plan().is_some());
}

#[test]
fn steps_shorter_than_the_lead_are_planned_for_at_once() {
    let mut rig = busy(Nanos::from_millis(1));
    rig.plan().unwrap();
    assert!(rig.plan().is_some());
}

#[test]
fn steps_whose_time_is_not_known_are_planned_for_at_once() {
    let mut rig = Rig::new(64);
    rig.scheduler.set_lead(Config::default().lead_min);
    rig.ask(1, 10, 50);
    rig.plan().unwrap();
    assert!(rig.plan().is_some());
}
