//! The levels of a sweep as a chart: throughput above, latencies below, over concurrency or rate.

use crate::config::LoadKind;
use crate::level::LevelReport;
use crate::pace::Pace;
use crate::stats::Summary;
use crate::svg::{Panel, Scale, Series, chart};
use crate::window::Rates;

/// The chart of a run's levels, which are of one kind and pace; None of a trace, which is a single point.
pub(crate) fn of(reports: &[LevelReport]) -> Option<String> {
    let first = reports.first()?;
    first.pace.value()?;
    let (x_title, x_scale) = match first.pace {
        Pace::Open { .. } => ("offered load, requests/s", Scale::Linear),
        _ => ("concurrency, requests at once", Scale::Doubling),
    };
    let panel = |title: &str, y_title: &str, y_scale, series| Panel {
        title: title.into(),
        x_title: x_title.into(),
        y_title: y_title.into(),
        x_scale,
        y_scale,
        series,
    };
    let (unit, made) = throughput(reports);
    let mut panels = vec![panel("Throughput", unit, Scale::Linear, made)];
    if first.pace.is_open() {
        panels.push(panel("Requests", "requests/s", Scale::Linear, requests(reports)));
    }
    panels.push(panel("Latency", "ms", Scale::Decades, latencies(reports)));
    let what = match first.kind {
        LoadKind::Embeddings => format!("{} inputs of {} tokens", first.inputs, first.prompt_length),
        _ => {
            let how = if first.stream { "streamed" } else { "in one piece" };
            format!("{} prompt tokens, {} output tokens, {how}", first.prompt_length, first.output_length)
        }
    };
    let arrivals = match first.pace {
        Pace::Open { burstiness: 1.0, .. } => "open loop, Poisson arrivals".to_string(),
        Pace::Open { burstiness, .. } => format!("open loop, Gamma arrivals of shape {burstiness}"),
        _ => "closed loop".to_string(),
    };
    let hollow = if reports.iter().any(|r| r.void.is_some()) { "; hollow points are void" } else { "" };
    let caption = format!("{what}; bars: lowest and highest fifth of the steady window{hollow}");
    Some(chart(&format!("{}: {arrivals}", first.model), &caption, &panels))
}

/// Its unit, and its lines.
fn throughput(reports: &[LevelReport]) -> (&'static str, Vec<Series>) {
    let spread = |of: fn(&Rates) -> f64| {
        reports.iter().filter(|r| r.completed > 0).map(|r| (of(&r.rates_low), of(&r.rates_high))).collect()
    };
    if reports.first().is_some_and(|first| first.kind == LoadKind::Embeddings) {
        let made = series("embeddings/s", 0, reports, |r| Some(r.rates.embeddings));
        return ("embeddings/s", vec![Series { spread: spread(|rates| rates.embeddings), ..made }]);
    }
    let output = series("output tokens/s", 0, reports, |r| Some(r.rates.output_tokens));
    let total = series("prompt + output", 1, reports, |r| Some(r.total_throughput()));
    ("tokens/s", vec![Series { spread: spread(|rates| rates.output_tokens), ..output }, total])
}

/// What became of the requests of an open loop.
fn requests(reports: &[LevelReport]) -> Vec<Series> {
    let mut all = vec![
        Series { dashed: true, ..series("offered", 5, reports, |r| r.punctuality.map(|p| p.offered)) },
        series("completed", 0, reports, |r| Some(r.rates.requests)),
    ];
    if reports.iter().any(|r| r.slo.is_some()) {
        all.push(series("good (goodput)", 2, reports, |r| r.slo.map(|_| r.rates.good_requests)));
    }
    all
}

fn latencies(reports: &[LevelReport]) -> Vec<Series> {
    type Of = fn(&LevelReport) -> Option<Summary>;
    let kinds: [(&str, usize, Of); 3] =
        [("TTFT", 0, |r| r.latencies.ttft), ("ITL", 1, |r| r.latencies.itl), ("end to end", 2, |r| r.latencies.e2el)];
    let mut all = Vec::new();
    for (name, colour, of) in kinds.into_iter().filter(|(_, _, of)| reports.iter().any(|r| of(r).is_some())) {
        all.push(series(&format!("{name} p50"), colour, reports, move |r| of(r).map(|s| s.median)));
        let high = series(&format!("{name} p99"), colour, reports, move |r| of(r).map(|s| s.p99));
        all.push(Series { dashed: true, ..high });
    }
    all
}

fn series(name: &str, colour: usize, reports: &[LevelReport], of: impl Fn(&LevelReport) -> Option<f64>) -> Series {
    let point = |r: &LevelReport| {
        let value = of(r).filter(|_| r.completed > 0)?;
        Some((r.pace.value()?, value, r.void.is_none()))
    };
    let points = reports.iter().filter_map(point).collect();
    Series { name: name.into(), colour, dashed: false, points, spread: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Shape;
    use crate::level::tests::{outcome, shape, steady_sample};
    use crate::svg::tests::assert_well_formed;

    fn level(pace: Pace) -> LevelReport {
        let samples = (0..41).map(|i| steady_sample(0, 100 * i, 100, 11)).collect();
        let slo = Some("ttft:500".parse().unwrap());
        LevelReport::new(&Shape { pace, slo, ..shape(1) }, outcome(samples), None)
    }

    #[test]
    fn a_sweep_over_concurrency_shows_throughput_and_latencies() {
        let reports: Vec<LevelReport> = [1, 2, 4]
            .map(|concurrency| LevelReport {
                pace: Pace::Closed { concurrency },
                ..level(Pace::Closed { concurrency: 1 })
            })
            .into();
        let svg = of(&reports).unwrap();
        assert_well_formed(&svg);
        // Two of throughput, two each of TTFT, ITL and end-to-end latency; three points each.
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (8, 24));
        for text in ["output tokens/s", "TTFT p99", "ITL p50", "end to end p50", "concurrency, requests at once"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("hollow"));
    }

    #[test]
    fn a_sweep_over_rates_shows_what_became_of_the_requests() {
        let open = |rate| level(Pace::Open { rate, burstiness: 1.0 });
        let mut reports = vec![open(5.0), open(10.0)];
        reports[1].void = Some("late".into());
        let svg = of(&reports).unwrap();
        assert_well_formed(&svg);
        for text in ["offered load, requests/s", "completed", "good (goodput)", "Poisson", "hollow points are void"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("fill=\"#fff\" stroke").count(), svg.matches("<polyline").count());
    }

    #[test]
    fn embeddings_have_their_own_unit_and_a_trace_no_chart() {
        let mut report = level(Pace::Closed { concurrency: 8 });
        report.kind = LoadKind::Embeddings;
        (report.latencies.ttft, report.latencies.itl) = (None, None);
        let svg = of(&[report]).unwrap();
        assert!(svg.contains("embeddings/s") && !svg.contains("TTFT"));
        assert_eq!(of(&[level(Pace::Trace)]), None);
        assert_eq!(of(&[]), None);
    }
}
