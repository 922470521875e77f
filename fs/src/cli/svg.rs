//! The zone map as a picture: a cell per zone, coloured by class; the fill is what is written,
//! its darker part what is still live.

use std::fmt::Write;

use crate::report::ZoneStatus;

/// Size of a cell and its margin, in pixels.
const CELL: usize = 26;
const GAP: usize = 4;
/// Height of the legend above the cells.
const LEGEND: usize = 44;
/// Fewest columns, so that the legend fits.
const COLUMNS_MIN: usize = 24;

/// Classes in the order of the legend, with their colours: what is written, what is live.
const CLASSES: [(&str, &str, &str); 6] = [
    ("anchor", "#d9c2ec", "#7b3fa8"),
    ("hot", "#f6c9a8", "#d2601a"),
    ("cold", "#b5d3ee", "#2468a8"),
    ("node", "#bfe3b4", "#3a8f2a"),
    ("free", "#f2f2f2", "#f2f2f2"),
    ("retired", "#808080", "#303030"),
];

/// Draws the zones.
pub(super) fn zone_map(zones: &[ZoneStatus]) -> String {
    let columns = ((zones.len() as f64 * 1.8).sqrt().ceil() as usize).max(COLUMNS_MIN);
    let rows = zones.len().div_ceil(columns);
    let (width, height) = (
        columns * (CELL + GAP) + GAP,
        LEGEND + rows * (CELL + GAP) + GAP,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    draw_legend(&mut svg, zones);
    for (index, zone) in zones.iter().enumerate() {
        let x = GAP + index % columns * (CELL + GAP);
        let y = LEGEND + index / columns * (CELL + GAP);
        draw_zone(&mut svg, zone, x, y);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_legend(svg: &mut String, zones: &[ZoneStatus]) {
    for (index, (class, written, live)) in CLASSES.iter().enumerate() {
        let x = GAP + index * 112;
        let count = zones.iter().filter(|zone| zone.class == *class).count();
        append(
            svg,
            format_args!(
                "<rect x=\"{x}\" y=\"10\" width=\"18\" height=\"18\" fill=\"{written}\" \
                 stroke=\"#999\"/><rect x=\"{x}\" y=\"19\" width=\"18\" height=\"9\" \
                 fill=\"{live}\"/><text x=\"{}\" y=\"24\">{class}: {count}</text>\n",
                x + 24
            ),
        );
    }
}

fn draw_zone(svg: &mut String, zone: &ZoneStatus, x: usize, y: usize) {
    let colours = CLASSES.iter().find(|(class, ..)| *class == zone.class);
    let (written, live) = colours.map_or(("#ffffff", "#000000"), |(_, w, l)| (*w, *l));
    let height = |blocks: u64| CELL as f64 * blocks as f64 / zone.capacity.max(1) as f64;
    let (full, used) = (
        height(zone.write_pointer.min(zone.capacity)),
        height(zone.live.min(zone.capacity)),
    );
    let bottom = (y + CELL) as f64;
    append(
        svg,
        format_args!(
            "<g><title>zone {}: {}, {}; {} of {} blocks written, {} live</title>\
             <rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"white\" \
             stroke=\"#999\"/>\
             <rect x=\"{x}\" y=\"{:.2}\" width=\"{CELL}\" height=\"{full:.2}\" \
             fill=\"{written}\"/>\
             <rect x=\"{x}\" y=\"{:.2}\" width=\"{CELL}\" height=\"{used:.2}\" fill=\"{live}\"/>\
             </g>\n",
            zone.zone,
            escape(&zone.class),
            escape(&zone.state),
            zone.write_pointer,
            zone.capacity,
            zone.live,
            bottom - full,
            bottom - used,
        ),
    );
}

/// Writing to a string does not fail.
fn append(svg: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(text);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_has_a_cell_per_zone_and_counts_in_the_legend() {
        let zone = |number, class: &str| ZoneStatus {
            zone: number,
            state: "a<b".into(),
            class: class.into(),
            write_pointer: 10,
            capacity: 10,
            live: 4,
            age: 0,
        };
        let svg = zone_map(&[zone(0, "anchor"), zone(1, "hot"), zone(2, "hot")]);
        assert_eq!(svg.matches("<title>").count(), 3);
        assert!(svg.contains("hot: 2") && svg.contains("a&lt;b"));
        assert!(svg.trim_end().ends_with("</svg>"));
        assert!(zone_map(&[]).contains("free: 0"));
    }
}
