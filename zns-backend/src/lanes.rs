//! The order of requests within a zone, for devices that do not keep it themselves.
//!
//! Exclusive requests of a zone (writes at its pointer) run one at a time in the order of their
//! submission; shared ones (appends) run together between them. Requests are known by the slots in
//! which they lie.

use std::collections::{HashMap, VecDeque};

use crate::geometry::ZoneId;

/// When a request may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// At once.
    Now,
    /// Alone in its zone, after everything submitted for it before.
    Exclusive(ZoneId),
    /// After the exclusive requests submitted for its zone before.
    Shared(ZoneId),
}

impl Turn {
    fn zone(self) -> Option<ZoneId> {
        match self {
            Turn::Now => None,
            Turn::Exclusive(zone) | Turn::Shared(zone) => Some(zone),
        }
    }
}

/// What every zone with ordered requests is doing.
#[derive(Default)]
pub(crate) struct Lanes(HashMap<ZoneId, Lane>);

impl Lanes {
    /// Whether the request in `slot` may start now; if not, [`Lanes::leave`] will answer it.
    pub(crate) fn enter(&mut self, slot: u32, turn: Turn) -> bool {
        let Some(zone) = turn.zone() else {
            return true;
        };
        let lane = self.0.entry(zone).or_default();
        if lane.waiting.is_empty() && lane.enter(turn) {
            return true;
        }
        lane.waiting.push_back((slot, turn));
        false
    }

    /// Ends a turn; answers the slots whose turn has come by that.
    pub(crate) fn leave(&mut self, turn: Turn) -> Vec<u32> {
        let Some(zone) = turn.zone() else {
            return Vec::new();
        };
        let Some(lane) = self.0.get_mut(&zone) else {
            return Vec::new();
        };
        let next = lane.leave(turn);
        if lane.is_idle() {
            self.0.remove(&zone);
        }
        next
    }
}

/// The requests of one zone that have to keep an order.
#[derive(Default)]
struct Lane {
    exclusive: bool,
    shared: u32,
    waiting: VecDeque<(u32, Turn)>,
}

impl Lane {
    /// Takes the turn if it has come.
    fn enter(&mut self, turn: Turn) -> bool {
        match turn {
            Turn::Now => {}
            Turn::Exclusive(_) if self.exclusive || self.shared > 0 => return false,
            Turn::Exclusive(_) => self.exclusive = true,
            Turn::Shared(_) if self.exclusive => return false,
            Turn::Shared(_) => self.shared += 1,
        }
        true
    }

    /// Ends a turn; answers the slots whose turn has come.
    fn leave(&mut self, turn: Turn) -> Vec<u32> {
        match turn {
            Turn::Now => {}
            Turn::Exclusive(_) => self.exclusive = false,
            Turn::Shared(_) => self.shared -= 1,
        }
        let mut next = Vec::new();
        while let Some(&(slot, turn)) = self.waiting.front()
            && self.enter(turn)
        {
            self.waiting.pop_front();
            next.push(slot);
        }
        next
    }

    fn is_idle(&self) -> bool {
        !self.exclusive && self.shared == 0 && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Turn = Turn::Exclusive(ZoneId(1));
    const APPEND: Turn = Turn::Shared(ZoneId(1));

    #[test]
    fn writes_of_a_zone_run_one_at_a_time_and_appends_together() {
        let mut lane = Lane::default();
        assert!(lane.enter(APPEND) && lane.enter(APPEND));
        assert!(!lane.enter(WRITE));
        lane.waiting
            .extend([(5, WRITE), (6, WRITE), (7, APPEND), (8, APPEND)]);
        assert!(lane.leave(APPEND).is_empty());
        assert_eq!(lane.leave(APPEND), [5]);
        assert_eq!(lane.leave(WRITE), [6]);
        assert_eq!(lane.leave(WRITE), [7, 8]);
        assert!(!lane.is_idle());
        assert!(lane.leave(APPEND).is_empty() && lane.leave(APPEND).is_empty());
        assert!(lane.is_idle());
    }
}
