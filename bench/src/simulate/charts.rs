//! Charts of an answer, as SVG.

use super::answer::Answer;
use crate::svg::{Panel, Scale, Series, chart};

/// Tenants that a chart shows: as many as there are colours.
const TENANTS_SHOWN_MAX: usize = 6;

/// The charts with the names of their files.
pub fn charts(answer: &Answer) -> Vec<(&'static str, String)> {
    let course = &answer.course;
    let title = format!("{} on {} devices of {}", answer.load, answer.devices, answer.cost);
    let mut order: Vec<usize> = (0..answer.tenants.len()).collect();
    order.sort_by(|&a, &b| answer.tenants[b].device_seconds.total_cmp(&answer.tenants[a].device_seconds));
    order.truncate(TENANTS_SHOWN_MAX);
    order.sort_unstable();
    let of_tenants = |values: &[Vec<f64>]| -> Vec<Series> {
        let line = |(colour, at): (usize, &usize)| {
            series(&answer.tenants[*at].name, colour, false, &course.seconds, values[*at].iter().map(|v| Some(*v)))
        };
        order.iter().enumerate().map(line).collect()
    };
    let more = answer.tenants.len() - order.len();
    let caption = match more {
        0 => "simulated".to_owned(),
        more => format!("simulated; {more} tenants that were charged less are left out"),
    };
    let one = |name: &'static str, panel: Panel| (name, chart(&title, &caption, &[panel]));
    let ttft = vec![
        series("TTFT p50", 0, false, &course.seconds, course.ttft_p50.iter().copied()),
        series("TTFT p99", 0, true, &course.seconds, course.ttft_p99.iter().copied()),
    ];
    let busy = series("all devices", 2, false, &course.seconds, course.utilisation.iter().map(|v| Some(v * 100.0)));
    vec![
        one(
            "service.svg",
            panel("service", "device seconds charged so far", Scale::Linear, of_tenants(&course.service)),
        ),
        one(
            "lag.svg",
            panel(
                "lag behind the tenant that has had most",
                "device seconds / weight",
                Scale::Linear,
                of_tenants(&course.lag),
            ),
        ),
        one("ttft.svg", panel("time to the first token, by when requests came", "ms", Scale::Decades, ttft)),
        one("utilisation.svg", panel("utilisation", "% of the devices' time", Scale::Linear, vec![busy])),
    ]
}

fn panel(title: &str, y_title: &str, y_scale: Scale, series: Vec<Series>) -> Panel {
    Panel {
        title: title.into(),
        x_title: "seconds".into(),
        y_title: y_title.into(),
        x_scale: Scale::Linear,
        y_scale,
        series,
    }
}

fn series(
    name: &str,
    colour: usize,
    dashed: bool,
    seconds: &[f64],
    values: impl Iterator<Item = Option<f64>>,
) -> Series {
    let points = seconds.iter().zip(values).filter_map(|(second, value)| Some((*second, value?, true))).collect();
    Series { name: name.into(), colour, dashed, points, spread: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::{
        costs::Costs,
        load::{Load, LoadOptions},
    };
    use super::*;
    use crate::svg::tests::assert_well_formed;

    #[test]
    fn each_chart_is_well_formed_and_shows_whom_it_can() {
        let costs = Costs::open("h200-llama8b").unwrap();
        let options = LoadOptions { requests: Some(300), ..LoadOptions::default() };
        let answer = Load::named("zipf-1000", 1, &costs, &options).unwrap().play(1);
        let charts = charts(&answer);
        let names: Vec<_> = charts.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["service.svg", "lag.svg", "ttft.svg", "utilisation.svg"]);
        for (name, svg) in &charts {
            assert_well_formed(svg);
            let lines = match *name {
                "utilisation.svg" => 1,
                "ttft.svg" => 2,
                _ => TENANTS_SHOWN_MAX,
            };
            assert_eq!(svg.matches("<polyline").count(), lines, "{name}");
            assert!(svg.contains("zipf-1000 on 1 devices of h200-llama8b"));
        }
        assert!(charts[0].1.contains("994 tenants that were charged less"));
    }
}
