//! The plot: bars on a logarithmic scale, medians with a whisker to the 99th percentile.

use std::fmt::Write as _;

use crate::programs::Who;
use crate::report::Figure;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 110.0;
const BAR: f64 = 15.0;
const GAP: f64 = 34.0;

fn colour(who: Who) -> &'static str {
    match who {
        Who::Trimtab => "#0b7285",
        Who::Floor | Who::FsyncFloor => "#adb5bd",
        Who::PrometheusConfigReloader => "#e8590c",
        Who::VictoriaConfigReloader => "#862e9c",
        Who::ConsulTemplate => "#c2255c",
        Who::Elsewhere => "#495057",
    }
}

/// The main figures that at least two programs have, each on a scale of its own.
pub fn svg(figures: &[Figure]) -> String {
    let drawn: Vec<_> = figures
        .iter()
        .filter(|figure| figure.main && figure.cells.values().filter(|cell| cell.value.is_some()).count() > 1)
        .collect();
    let mut body = String::new();
    let mut y = 24.0;
    for figure in drawn {
        y = group(&mut body, figure, y);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn group(body: &mut String, figure: &Figure, top: f64) -> f64 {
    let bars: Vec<_> = Who::ALL
        .into_iter()
        .filter_map(|who| {
            let cell = figure.cells.get(&who)?;
            let value = cell.value?;
            Some((who, value, cell.spread.as_ref().map_or(value, |spread| spread.p99.max(value)), &cell.text))
        })
        .collect();
    let least = bars.iter().map(|bar| bar.1).filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
    let most = bars.iter().map(|bar| bar.2).fold(0.0, f64::max);
    // Logarithmic, from half of the least: one that is twice as much is a step to the right, whatever the scale.
    let (from, span) = ((least / 2.0).ln(), (most / (least / 2.0)).ln().max(1e-9));
    let place = |value: f64| ((value.max(least / 2.0).ln() - from) / span).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    let mut y = top;
    // Only a String is written to.
    let _ = writeln!(body, "<text x=\"8\" y=\"{y}\" font-weight=\"bold\">{}</text>", escaped(&figure.name));
    y += 8.0;
    for (who, value, high, text) in bars {
        let (end, high, middle) = (LEFT + place(value), LEFT + place(high), y + BAR / 2.0);
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" \
             height=\"{}\" fill=\"{}\"/><path d=\"M{end:.1} {middle}H{high:.1}\" stroke=\"#212529\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            LEFT - 6.0,
            middle + 4.0,
            escaped(who.title()),
            end - LEFT,
            BAR - 3.0,
            colour(who),
            high + 5.0,
            middle + 4.0,
            escaped(text),
        );
        y += BAR;
    }
    y + GAP - BAR / 2.0
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('`', "")
}
