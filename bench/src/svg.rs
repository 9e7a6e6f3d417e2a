//! Line charts as SVG text: axes with units, ticks, a legend, nothing else.
//!
//! Why our own: a chart of a dozen points is two hundred lines, and a plotting library would be the largest dependency of this
//! crate. The background is light and opaque, so that a chart reads the same wherever it is shown.

use std::fmt::Write;

/// Of one panel with its legend, in px.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
/// Around the plotting area: room for tick labels, titles and the legend.
const LEFT: f64 = 78.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 48.0;
/// Above the first panel: the title and its second line.
const HEAD: f64 = 52.0;

/// Okabe and Ito's palette, which colour-blind readers can tell apart.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#555555"];

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From 0.
    Linear,
    /// By powers of two, each point with its own tick.
    Doubling,
    /// By powers of ten; values must be above 0.
    Decades,
}

/// One line of a panel.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// The place in the palette: lines that belong together share it.
    pub(crate) colour: usize,
    pub(crate) dashed: bool,
    /// (x, y, whether the point can stand): one that cannot is hollow.
    pub(crate) points: Vec<(f64, f64, bool)>,
    /// Lowest and highest of each point, drawn as a bar; empty for none.
    pub(crate) spread: Vec<(f64, f64)>,
}

/// A pair of axes with lines.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x_title: String,
    pub(crate) y_title: String,
    pub(crate) x_scale: Scale,
    pub(crate) y_scale: Scale,
    pub(crate) series: Vec<Series>,
}

/// Panels one below the other under a title and a line of explanation.
pub(crate) fn chart(title: &str, caption: &str, panels: &[Panel]) -> String {
    let height = HEAD + HEIGHT * panels.len() as f64;
    let mut svg = String::new();
    let mut put = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#222\">"
    ));
    put(format!("<title>{}</title>", escaped(title)));
    put(format!("<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>"));
    put(label(LEFT, 22.0, "start", "font-size=\"15\" font-weight=\"600\"", title));
    put(label(LEFT, 40.0, "start", "fill=\"#666\" font-size=\"11\"", caption));
    for (index, panel) in panels.iter().enumerate() {
        put(format!("<g transform=\"translate(0 {})\">", HEAD + HEIGHT * index as f64));
        put(panel.draw());
        put("</g>".into());
    }
    put("</svg>".into());
    svg
}

/// One axis: which values it spans, and where they lie.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    /// Px of `low` and `high`.
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn new(scale: Scale, values: &[f64], from: f64, to: f64) -> Axis {
        let most = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().filter(|&v| v > 0.0).fold(f64::INFINITY, f64::min);
        let (low, high, ticks) = match scale {
            Scale::Linear => {
                let step = round_step(most / 5.0);
                let steps = (most / step).ceil().max(1.0);
                (0.0, steps * step, (0..=steps as u32).map(|i| f64::from(i) * step).collect())
            }
            Scale::Doubling => {
                let mut ticks: Vec<f64> = values.to_vec();
                ticks.sort_by(f64::total_cmp);
                ticks.dedup();
                (least.min(most), most.max(least), ticks)
            }
            Scale::Decades => {
                let (low, high) = if least.is_finite() { (least, most) } else { (1.0, 10.0) };
                // Ticks at 1, 2 and 5 of each decade that the values touch.
                let decades = low.log10().floor() as i32..=high.log10().floor() as i32 + 1;
                let all: Vec<f64> = decades.flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d))).collect();
                let below = all.iter().copied().rfind(|&t| t <= low).unwrap_or(low);
                let above = all.iter().copied().find(|&t| t >= high && t > below).unwrap_or(high);
                (below, above, all.into_iter().filter(|&t| below <= t && t <= above).collect())
            }
        };
        Axis { scale, low, high, from, to, ticks }
    }

    fn at(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            // All at one value: in the middle.
            _ if self.low >= self.high => 0.5,
            _ => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + (self.to - self.from) * place
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    if step <= 0.0 || !step.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * power >= step * 0.999).unwrap_or(10.0);
    digit * power
}

impl Panel {
    fn draw(&self) -> String {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(self.x_scale, &points().map(|p| p.0).collect::<Vec<_>>(), LEFT, right);
        let highs = self.series.iter().flat_map(|series| &series.spread).map(|spread| spread.1);
        let y = Axis::new(self.y_scale, &points().map(|p| p.1).chain(highs).collect::<Vec<_>>(), bottom, TOP);
        let mut svg = String::new();
        let mut put = |text: String| {
            svg.push_str(&text);
            svg.push('\n');
        };
        put(label(LEFT, TOP - 12.0, "start", "font-weight=\"600\"", &self.title));
        for &tick in &y.ticks {
            put(line((LEFT, y.at(tick)), (right, y.at(tick)), "stroke=\"#e4e4e4\""));
            put(label(LEFT - 8.0, y.at(tick) + 4.0, "end", "", &shown(tick)));
        }
        for &tick in &x.ticks {
            put(line((x.at(tick), bottom), (x.at(tick), bottom + 5.0), "stroke=\"#888\""));
            put(label(x.at(tick), bottom + 18.0, "middle", "", &shown(tick)));
        }
        put(line((LEFT, bottom), (right, bottom), "stroke=\"#888\""));
        put(line((LEFT, bottom), (LEFT, TOP), "stroke=\"#888\""));
        put(label((LEFT + right) / 2.0, HEIGHT - 12.0, "middle", "", &self.x_title));
        let middle = (TOP + bottom) / 2.0;
        let turned = format!("transform=\"rotate(-90 18 {middle})\"");
        put(label(18.0, middle, "middle", &turned, &self.y_title));
        for (index, series) in self.series.iter().enumerate() {
            put(series.draw(&x, &y));
            let height = TOP + 8.0 + 20.0 * index as f64;
            put(line((right + 16.0, height), (right + 42.0, height), &series.stroke()));
            put(label(right + 50.0, height + 4.0, "start", "", &series.name));
        }
        svg
    }
}

impl Series {
    fn colour(&self) -> &'static str {
        COLOURS[self.colour % COLOURS.len()]
    }

    fn stroke(&self) -> String {
        let dashes = if self.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        format!("stroke=\"{}\" stroke-width=\"2\"{dashes}", self.colour())
    }

    fn draw(&self, x: &Axis, y: &Axis) -> String {
        let mut svg = String::new();
        let places: Vec<(f64, f64)> = self.points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(svg, "<g><title>{}</title>", escaped(&self.name));
        let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" {}/>", path.join(" "), self.stroke());
        for (place, &(low, high)) in places.iter().zip(&self.spread) {
            let bar = format!("stroke=\"{}\" stroke-opacity=\"0.45\"", self.colour());
            let _ = writeln!(svg, "{}", line((place.0, y.at(low)), (place.0, y.at(high)), &bar));
        }
        for (place, point) in places.iter().zip(&self.points) {
            let fill = if point.2 { self.colour() } else { "#fff" };
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{fill}\" stroke=\"{}\"><title>{}: {}</title></circle>",
                place.0,
                place.1,
                self.colour(),
                shown(point.0),
                shown(point.1)
            );
        }
        svg.push_str("</g>");
        svg
    }
}

fn line(from: (f64, f64), to: (f64, f64), style: &str) -> String {
    format!("<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {style}/>", from.0, from.1, to.0, to.1)
}

fn label(x: f64, y: f64, anchor: &str, style: &str, text: &str) -> String {
    let style = if style.is_empty() { String::new() } else { format!(" {style}") };
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{style}>{}</text>", escaped(text))
}

/// Three significant digits at least, thousands apart, no trailing zeros.
fn shown(value: f64) -> String {
    let decimals = if value.abs() >= 100.0 || value == value.round() {
        0
    } else if value.abs() >= 1.0 {
        2
    } else {
        4
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let (whole, rest) = text.split_once('.').map_or((text, String::new()), |(whole, rest)| (whole, format!(".{rest}")));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &rest
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no place for control characters, not even escaped.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Panics unless every element of the text is closed in its turn and holds no bare `<` or `&`.
    pub(crate) fn assert_well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            let (text, tag) = rest.split_at(start);
            assert_text(text);
            let end = tag.find('>').expect("a tag is closed");
            let inner = &tag[1..end];
            assert!(!inner.contains('<'), "{inner}");
            assert!(inner.matches('"').count().is_multiple_of(2), "{inner}");
            if let Some(name) = inner.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !inner.ends_with('/') {
                open.push(inner.split(' ').next().unwrap());
            }
            assert_text(inner);
            rest = &tag[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
    }

    fn assert_text(text: &str) {
        for (at, _) in text.match_indices('&') {
            let entity = ["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|entity| text[at..].starts_with(entity));
            assert!(entity, "{text}");
        }
    }

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        Series {
            name: name.into(),
            colour: 0,
            dashed: false,
            points: points.iter().map(|&(x, y)| (x, y, true)).collect(),
            spread: Vec::new(),
        }
    }

    fn panel(x_scale: Scale, y_scale: Scale, series: Vec<Series>) -> Panel {
        let title = |text: &str| text.to_string();
        Panel { title: title("T"), x_title: title("x, 1"), y_title: title("y, ms"), x_scale, y_scale, series }
    }

    #[test]
    fn a_chart_is_well_formed_and_holds_its_series() {
        let lines = vec![series("a <&> \"b\"\u{1}", &[(1.0, 2.0), (2.0, 3.0)]), series("second", &[(1.0, 5.0)])];
        for (x, y) in [(Scale::Doubling, Scale::Decades), (Scale::Linear, Scale::Linear)] {
            let svg = chart("title & more", "caption", &[panel(x, y, lines.clone()), panel(x, y, lines.clone())]);
            assert_well_formed(&svg);
            assert_eq!(svg.matches("<polyline").count(), 4);
            assert_eq!(svg.matches("<circle").count(), 6);
            for text in ["title &amp; more", "a &lt;&amp;&gt; &quot;b&quot; ", "second", "x, 1", "y, ms", "1: 5"] {
                assert!(svg.contains(text), "{text}");
            }
        }
    }

    #[test]
    fn odd_charts_are_drawn_without_odd_numbers() {
        for points in [&[][..], &[(1.0, 0.0)], &[(8.0, 3.0)], &[(1.0, 0.0), (2.0, 0.0)], &[(0.5, 1e-9), (1e9, 1e12)]] {
            for (x, y) in [(Scale::Doubling, Scale::Decades), (Scale::Linear, Scale::Linear)] {
                let svg = chart("t", "", &[panel(x, y, vec![series("s", points)])]);
                assert_well_formed(&svg);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
            }
        }
    }

    #[test]
    fn points_that_cannot_stand_are_hollow() {
        let mut void = series("s", &[(1.0, 2.0), (2.0, 3.0)]);
        void.points[1].2 = false;
        let svg = chart("t", "", &[panel(Scale::Linear, Scale::Linear, vec![void])]);
        assert_eq!(svg.matches("r=\"3\" fill=\"#fff\"").count(), 1);
    }

    #[test]
    fn axes_span_their_values_with_round_ticks() {
        let axis = Axis::new(Scale::Linear, &[3.0, 870.0], 0.0, 100.0);
        assert_eq!((axis.low, axis.high), (0.0, 1000.0));
        assert_eq!(axis.ticks, [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        assert_eq!(axis.at(500.0), 50.0);
        let axis = Axis::new(Scale::Decades, &[3.0, 870.0], 0.0, 100.0);
        assert_eq!((axis.low, axis.high), (2.0, 1000.0));
        assert_eq!(axis.ticks, [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        assert!((axis.at(2000f64.sqrt()) - 50.0).abs() < 1e-9);
        let axis = Axis::new(Scale::Doubling, &[1.0, 4.0, 2.0, 1.0], 0.0, 100.0);
        assert_eq!(axis.ticks, [1.0, 2.0, 4.0]);
        assert!((axis.at(2.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_are_shown_short() {
        for (value, want) in [
            (0.0, "0"),
            (1.0, "1"),
            (2.5, "2.5"),
            (12.345, "12.35"),
            (0.05, "0.05"),
            (999.9, "1,000"),
            (1234.0, "1,234"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(shown(value), want);
        }
    }
}
