//! The state machine against its table in the specification, and against a naive model.

use super::*;
use ZoneState::{Closed, Empty, ExplicitlyOpen, Full, ImplicitlyOpen, Offline, ReadOnly};
use proptest::prelude::*;

const ALL: [ZoneState; 7] = [
    Empty,
    ImplicitlyOpen,
    ExplicitlyOpen,
    Closed,
    Full,
    ReadOnly,
    Offline,
];

fn geometry() -> Geometry {
    Geometry {
        block_size: 4096,
        zones: 8,
        zone_size: 16,
        zone_capacity: 12,
        max_open: 2,
        max_active: 4,
        max_append: 0,
    }
}

const Z: ZoneId = ZoneId(1);

/// A table whose zone 1 is in `state`, having got there by commands.
fn table_with(state: ZoneState) -> ZoneTable {
    let mut table = ZoneTable::new(geometry());
    let start = geometry().zone_start(Z);
    match state {
        Empty => {}
        ImplicitlyOpen => drop(table.write(start, 3).expect("write")),
        ExplicitlyOpen => drop(table.act(Z, Action::Open).expect("open")),
        Closed => {
            table.write(start, 3).expect("write");
            table.act(Z, Action::Close).expect("close");
        }
        Full => drop(table.act(Z, Action::Finish).expect("finish")),
        ReadOnly | Offline => {
            table.write(start, 3).expect("write");
            table.fail(Z, state).expect("fail");
        }
    }
    assert_eq!(table.zone(Z).state, state);
    table
}

#[test]
fn every_action_in_every_state_leads_where_the_specification_says() {
    // Rows: action. Columns: states in the order of ALL. None: Invalid Zone State Transition.
    let rows = [
        (
            Action::Open,
            [
                Some(ExplicitlyOpen),
                Some(ExplicitlyOpen),
                Some(ExplicitlyOpen),
                Some(ExplicitlyOpen),
                None,
                None,
                None,
            ],
        ),
        (
            Action::Close,
            [
                None,
                Some(Closed),
                Some(Closed),
                Some(Closed),
                None,
                None,
                None,
            ],
        ),
        (
            Action::Finish,
            [
                Some(Full),
                Some(Full),
                Some(Full),
                Some(Full),
                Some(Full),
                None,
                None,
            ],
        ),
        (
            Action::Reset,
            [
                Some(Empty),
                Some(Empty),
                Some(Empty),
                Some(Empty),
                Some(Empty),
                None,
                None,
            ],
        ),
    ];
    for (action, outcomes) in rows {
        for (from, expected) in ALL.into_iter().zip(outcomes) {
            let mut table = table_with(from);
            let before = table.zone(Z);
            match (table.act(Z, action), expected) {
                (Ok(_), Some(state)) => assert_eq!(table.zone(Z).state, state, "{action:?} {from}"),
                (
                    Err(Error::InvalidTransition {
                        zone, from: named, ..
                    }),
                    None,
                ) => {
                    assert_eq!((zone, named), (Z, from));
                    assert_eq!(table.zone(Z), before);
                }
                (outcome, _) => panic!("{action:?} in {from}: {outcome:?}"),
            }
            assert_eq!(table.zone(Z).contradiction(&geometry()), None);
        }
    }
}

#[test]
fn every_state_answers_a_write_at_the_pointer_with_its_status() {
    for from in ALL {
        let mut table = table_with(from);
        let at = geometry()
            .zone_start(Z)
            .plus(table.zone(Z).write_pointer.min(11));
        let outcome = table.write(at, 1);
        match from {
            Full => assert!(matches!(outcome, Err(Error::ZoneFull(Z)))),
            ReadOnly => assert!(matches!(outcome, Err(Error::ZoneReadOnly(Z)))),
            Offline => assert!(matches!(outcome, Err(Error::ZoneOffline(Z)))),
            ExplicitlyOpen => assert_eq!(table.zone(Z).state, ExplicitlyOpen),
            Empty | ImplicitlyOpen | Closed => assert_eq!(table.zone(Z).state, ImplicitlyOpen),
        }
    }
}

#[test]
fn every_state_answers_a_read_with_its_status() {
    for from in ALL {
        let table = table_with(from);
        let start = geometry().zone_start(Z);
        let read = |blocks| check_read(&geometry(), |id| table.zone(id), start, blocks);
        match from {
            Empty | ExplicitlyOpen => assert!(matches!(read(1), Err(Error::Unwritten { .. }))),
            ImplicitlyOpen | Closed | ReadOnly => {
                assert!(read(3).is_ok());
                assert!(matches!(read(4), Err(Error::Unwritten { .. })));
            }
            Full => {
                assert!(read(12).is_ok());
                assert!(matches!(read(13), Err(Error::ZoneBoundary { .. })));
            }
            Offline => assert!(matches!(read(1), Err(Error::ZoneOffline(Z)))),
        }
    }
}

#[test]
fn a_write_that_finds_the_open_limit_closes_the_zone_opened_first() {
    let mut table = ZoneTable::new(geometry());
    for zone in [0, 1] {
        table.append(ZoneId(zone), 1).expect("append");
    }
    assert_eq!(
        table.append(ZoneId(2), 1).expect("append").1,
        Some(ZoneId(0))
    );
    assert_eq!(table.zone(ZoneId(0)).state, Closed);
}

#[test]
fn limits_answer_with_their_statuses() {
    let mut table = ZoneTable::new(geometry());
    table.act(ZoneId(0), Action::Open).expect("open");
    table.act(ZoneId(1), Action::Open).expect("open");
    assert!(matches!(
        table.act(ZoneId(2), Action::Open),
        Err(Error::TooManyOpen(2))
    ));
    assert!(matches!(
        table.append(ZoneId(2), 1),
        Err(Error::TooManyOpen(2))
    ));
    table.act(ZoneId(0), Action::Close).expect("close");
    table.act(ZoneId(1), Action::Close).expect("close");
    for zone in [2, 3] {
        table.append(ZoneId(zone), 1).expect("append");
    }
    assert!(matches!(
        table.append(ZoneId(4), 1),
        Err(Error::TooManyActive(4))
    ));
    // Filling a zone in one write needs the resources all the same.
    assert!(matches!(
        table.append(ZoneId(4), 12),
        Err(Error::TooManyActive(4))
    ));
    table
        .act(ZoneId(4), Action::Finish)
        .expect("finishing an empty zone needs none");
}

/// The naive model: a list of zones, everything counted anew each time.
#[derive(Clone, Debug)]
struct Naive {
    zones: Vec<(ZoneState, u64)>,
    opened: Vec<usize>,
}

impl Naive {
    fn count(&self, states: &[ZoneState]) -> usize {
        self.zones
            .iter()
            .filter(|zone| states.contains(&zone.0))
            .count()
    }

    /// Opens a zone; the name of the status if it cannot be.
    fn open(&mut self, zone: usize, to: ZoneState) -> std::result::Result<(), &'static str> {
        if ![ImplicitlyOpen, ExplicitlyOpen].contains(&self.zones[zone].0) {
            let active = self.count(&[ImplicitlyOpen, ExplicitlyOpen, Closed]);
            if active == 4 && self.zones[zone].0 != Closed {
                return Err("active");
            }
            if self.count(&[ImplicitlyOpen, ExplicitlyOpen]) == 2 {
                let zones = &self.zones;
                self.opened.retain(|&zone| zones[zone].0 == ImplicitlyOpen);
                if self.opened.is_empty() {
                    return Err("open");
                }
                let oldest = self.opened.remove(0);
                self.zones[oldest].0 = Closed;
            }
        }
        self.opened.retain(|&other| other != zone);
        self.zones[zone].0 = to;
        if to == ImplicitlyOpen {
            self.opened.push(zone);
        }
        Ok(())
    }

    fn append(&mut self, zone: usize, blocks: u64) -> std::result::Result<u64, &'static str> {
        let (state, pointer) = self.zones[zone];
        match state {
            Full => return Err("full"),
            ReadOnly => return Err("read-only"),
            Offline => return Err("offline"),
            _ if pointer + blocks > 12 => return Err("boundary"),
            ImplicitlyOpen | ExplicitlyOpen => {}
            _ => self.open(zone, ImplicitlyOpen)?,
        }
        self.zones[zone].1 += blocks;
        if self.zones[zone].1 == 12 {
            self.zones[zone].0 = Full;
        }
        self.opened
            .retain(|&other| self.zones[other].0 == ImplicitlyOpen);
        Ok(pointer)
    }

    fn act(&mut self, zone: usize, action: Action) -> std::result::Result<(), &'static str> {
        let state = self.zones[zone].0;
        if [ReadOnly, Offline].contains(&state) {
            return Err("transition");
        }
        match action {
            Action::Open if state == Full => return Err("transition"),
            Action::Open => self.open(zone, ExplicitlyOpen)?,
            Action::Close if [Empty, Full].contains(&state) => return Err("transition"),
            Action::Close => self.zones[zone].0 = Closed,
            Action::Finish => self.zones[zone] = (Full, 12),
            Action::Reset => self.zones[zone] = (Empty, 0),
        }
        self.opened
            .retain(|&other| self.zones[other].0 == ImplicitlyOpen);
        Ok(())
    }
}

fn status(error: &Error) -> &'static str {
    match error {
        Error::ZoneFull(_) => "full",
        Error::ZoneReadOnly(_) => "read-only",
        Error::ZoneOffline(_) => "offline",
        Error::ZoneBoundary { .. } => "boundary",
        Error::TooManyActive(_) => "active",
        Error::TooManyOpen(_) => "open",
        Error::InvalidTransition { .. } => "transition",
        _ => "other",
    }
}

proptest! {
    #[test]
    fn state_machine_agrees_with_the_naive_model(
        steps in prop::collection::vec((0..8_u32, 0..24_u32, 1..8_u64), 1..200),
    ) {
        let mut table = ZoneTable::new(geometry());
        let mut naive = Naive { zones: vec![(Empty, 0); 8], opened: Vec::new() };
        for (zone, what, blocks) in steps {
            let (id, index) = (ZoneId(zone), zone as usize);
            let (got, expected) = match what {
                0..10 => (
                    table.append(id, blocks).map(|(lba, _)| geometry().offset_of(lba)),
                    naive.append(index, blocks),
                ),
                23 if zone == 7 => {
                    naive.zones[7].0 = ReadOnly;
                    naive.opened.retain(|&other| other != 7);
                    (table.fail(id, ReadOnly).map(|()| 0), Ok(0))
                }
                _ => {
                    let action = [Action::Open, Action::Close, Action::Finish, Action::Reset]
                        [what as usize % 4];
                    (table.act(id, action).map(|_| 0), naive.act(index, action).map(|()| 0))
                }
            };
            prop_assert_eq!(got.map_err(|error| status(&error)), expected);
            for (index, &(state, write_pointer)) in naive.zones.iter().enumerate() {
                let zone = table.zone(ZoneId(index as u32));
                prop_assert_eq!(zone, Zone { state, write_pointer });
            }
        }
    }
}
