use super::*;

fn counts(limit: i64) -> RequestCounts {
    let counts = RequestCounts::new(Source::memory());
    counts.put(1, "acme", Limits { amounts: [None, None, Some(limit)], ..Limits::default() });
    counts
}

fn granted(counts: &RequestCounts) -> i64 {
    counts.0.all().iter().flat_map(|till| till.state().grants.iter().map(|h| h.amount).collect::<Vec<_>>()).sum()
}

#[tokio::test]
async fn with_room_for_ten_ten_are_let_in_and_what_is_dropped_comes_back() {
    let counts = counts(10);
    let mut tickets = Vec::new();
    for _ in 0..10 {
        tickets.push(counts.take(1).await.expect("room").expect("counted"));
    }
    let Err(Refusal::Spent { until_us }) = counts.take(1).await else { panic!("there were ten") };
    assert_eq!(until_us, Period::Month.end(Period::Month.begin(now_us())));
    drop(tickets.pop());
    tickets.push(counts.take(1).await.expect("one came back").expect("counted"));
    assert!(counts.take(1).await.is_err());
    tickets.into_iter().for_each(Ticket::used);
    assert!(counts.take(1).await.is_err());
    assert_eq!(granted(&counts), 10);
    assert!(counts.take(2).await.expect("nobody counts them").is_none());
}

#[tokio::test]
async fn of_many_at_once_as_many_are_let_in_as_there_is_room_for() {
    for room in [1, 10, 37, 200] {
        let counts = counts(room);
        let take = || async {
            match counts.take(1).await {
                Ok(ticket) => ticket.map(Ticket::used).map_or(0, |()| 1),
                Err(_) => 0,
            }
        };
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let counts = counts.clone();
            tasks.spawn(async move { counts.take(1).await.map(|t| t.map(Ticket::used)).is_ok() });
        }
        let let_in = tasks.join_all().await.into_iter().filter(|in_| *in_).count();
        assert_eq!(let_in as i64, room.min(500));
        assert_eq!(take().await, 0);
    }
}

#[tokio::test]
async fn a_plan_may_be_changed_lifted_and_set_again() {
    let counts = counts(1);
    counts.take(1).await.expect("room").expect("counted").used();
    assert!(counts.take(1).await.is_err());
    counts.put(1, "acme", Limits { amounts: [None, None, Some(2)], ..Limits::default() });
    counts.take(1).await.expect("one more").expect("counted").used();
    assert!(counts.take(1).await.is_err());
    counts.put(1, "acme", Limits::default());
    assert!(counts.take(1).await.expect("not counted").is_none());
    let shadow = Limits { amounts: [None, None, Some(2)], shadow: true, ..Limits::default() };
    counts.put(1, "acme", shadow);
    for _ in 0..50 {
        counts.take(1).await.expect("shadows refuse nothing").expect("and count").used();
    }
}

#[tokio::test]
async fn what_nobody_uses_goes_back_and_what_is_used_is_reported() {
    let counts = counts(1_000);
    let ticket = counts.take(1).await.expect("room").expect("counted");
    counts.take(1).await.expect("room").expect("counted").used();
    let till = counts.0.all().remove(0);
    let amount = granted(&counts);
    assert!(amount >= AHEAD_MIN);
    let (now, at_us) = (Instant::now(), now_us());
    assert_eq!(till.state().reports(now, at_us), [], "nothing is due");
    let later = till.state().reports(now + REPORT_INTERVAL, at_us);
    assert_eq!(later.iter().map(|r| (r.spent, r.closes)).collect::<Vec<_>>(), [(1, false)], "one is under way");
    let last = till.state().reports(now + KEPT, at_us);
    assert_eq!(last.iter().map(|r| (r.spent, r.closes)).collect::<Vec<_>>(), [(2, true)], "and counts in the end");
    drop(ticket);
    assert_eq!(granted(&counts), 0);
}

#[tokio::test]
async fn a_clock_that_is_set_gives_back_what_was_taken_by_another_time() {
    let counts = counts(1_000);
    counts.take(1).await.expect("room").expect("counted").used();
    let till = counts.0.all().remove(0);
    let (now, at_us) = (Instant::now(), now_us());
    assert_eq!(till.state().stepped(now, at_us + 100_000).2, []);
    let stepped = till.state().stepped(now, at_us - 60_000_000).2;
    assert_eq!(stepped.iter().map(|r| (r.spent, r.closes)).collect::<Vec<_>>(), [(1, true)]);
    assert_eq!(granted(&counts), 0);
}

#[tokio::test]
async fn a_grant_is_of_the_windows_in_which_it_was_taken() {
    let counts = counts(1_000);
    counts.take(1).await.expect("room").expect("counted").used();
    let till = counts.0.all().remove(0);
    let (now, hour) = (Instant::now(), windows_of(now_us() + 3_600_000_000));
    assert!(till.state().take_from(now, hour).is_none(), "the next hour's requests are the next hour's");
    assert!(till.state().take_from(now, windows_of(now_us())).is_some());
    let last = till.state().reports(now, now_us() + 3_600_000_000);
    assert!(last[0].closes);
}
