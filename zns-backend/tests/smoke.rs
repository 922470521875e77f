//! Quick check.
use zns_backend::*;
#[test]
fn smoke() {
    let g = Geometry {
        block_size: 4096,
        zones: 8,
        zone_size: 64,
        zone_capacity: 48,
        max_open: 3,
        max_active: 4,
        max_append: 16,
    };
    let dir = tempfile::tempdir_in(".").unwrap();
    let p = dir.path().join("i");
    {
        let d = FileDevice::create(&p, &g, false).unwrap();
        assert!(d.is_direct());
        for i in 0..20u8 {
            d.write(Lba(i as u64), &vec![i; 4096]).unwrap();
            d.flush().unwrap();
        }
        assert!(matches!(FileDevice::open(&p, true), Err(Error::Busy(_))));
    }
    let d = FileDevice::open(&p, false).unwrap();
    assert_eq!(d.report(ZoneId(0), 1).unwrap()[0].write_pointer, 20);
    let mut b = vec![0; 20 * 4096];
    d.read(Lba(0), &mut b).unwrap();
    assert!(
        b.chunks(4096)
            .enumerate()
            .all(|(i, c)| c.iter().all(|&x| x == i as u8))
    );
    let m = MemDevice::new(g).unwrap();
    m.write(Lba(0), &b[..4096]).unwrap();
    m.reset(ZoneId(0)).unwrap();
}
