use super::text::human;
use super::*;

/// T153, from the table: default, what is shown, both limits, garbage.
#[test]
fn every_setting_keeps_to_its_range_and_refuses_garbage() {
    for row in DEFINITIONS {
        let settings = Settings::new(row.scope, &Initial::new());
        let (least, most) = row.range();
        assert_eq!(settings.get(row.knob), row.default, "{}", row.name);
        assert!((least..=most).contains(&row.default), "{}", row.name);
        for value in [row.default, least, most] {
            let shown = row.plain(value).to_string();
            assert_eq!(row.parse(&shown), Ok(value), "{}: {shown}", row.name);
        }
        assert_eq!(
            settings.set(row.knob, u64::MAX),
            settings.range(row.knob).1,
            "{}",
            row.name
        );
        assert_eq!(
            settings.set(row.knob, 0),
            settings.range(row.knob).0,
            "{}",
            row.name
        );
        for garbage in [
            "",
            "-1",
            "0x10",
            "many",
            "1 2",
            "Writeback",
            "1kk",
            "99999999999999999999e",
        ] {
            assert!(row.parse(garbage).is_err(), "{}: {garbage:?}", row.name);
        }
        assert_eq!(Knob::named(row.name, row.scope), Some(row.knob));
    }
}

#[test]
fn rows_are_in_the_order_of_knobs() {
    for (place, row) in DEFINITIONS.iter().enumerate() {
        assert_eq!(row.knob as usize, place);
    }
}

#[test]
fn what_somebody_writes_is_understood() {
    let parse = |knob: Knob, text| knob.definition().parse(text).ok();
    assert_eq!(parse(Knob::SequentialCutoff, "8M"), Some(8 << 20));
    assert_eq!(
        parse(Knob::SequentialCutoff, "5000000000"),
        Some(5_000_000_000)
    );
    assert_eq!(parse(Knob::SequentialCutoff, "16e"), None);
    assert_eq!(parse(Knob::WritebackDelay, "100ms"), Some(100_000));
    assert_eq!(parse(Knob::WritebackDelay, "1.5"), Some(1_500_000));
    assert_eq!(parse(Knob::WritebackDelay, "2m"), Some(120_000_000));
    assert_eq!(parse(Knob::WritebackDelay, "."), None);
    assert_eq!(parse(Knob::CongestedReadThresholdUs, "3ms"), Some(3000));
    assert_eq!(parse(Knob::CacheMode, "writearound"), Some(2));
    assert_eq!(parse(Knob::CacheMode, "Writearound"), None);
    assert_eq!(parse(Knob::WritebackRunning, "7"), Some(1));
    assert_eq!(parse(Knob::WritebackRunning, "off"), Some(0));
    assert_eq!(parse(Knob::WritebackPercent, "20%"), Some(20));
    assert_eq!(
        parse(Knob::WritebackRateMinimum, "99999999999999999999"),
        Some(u64::MAX)
    );
}

/// The kernel: 80 became 40.
#[test]
fn numbers_beyond_the_range_are_cut() {
    let settings = Settings::new(Scope::Volume, &Initial::new());
    assert_eq!(settings.set(Knob::WritebackPercent, 80), 40);
    assert_eq!(
        settings.set(Knob::SequentialCutoff, 5_000_000_000),
        u64::from(u32::MAX)
    );
}

#[test]
fn limits_that_depend_on_each_other_stay_in_order() {
    let settings = Settings::new(Scope::Volume, &Initial::new());
    assert_eq!(settings.set(Knob::WritebackRateFpTermLow, 50), 9);
    assert_eq!(settings.set(Knob::WritebackRateFpTermMid, 5000), 999);
    assert_eq!(settings.set(Knob::WritebackRateFpTermHigh, 3), 1000);
    let set = Settings::new(Scope::CacheSet, &Initial::new());
    assert_eq!(set.set(Knob::CutoffWriteback, 80), 70);
    assert_eq!(set.set(Knob::CutoffWritebackSync, 60), 70);
    assert_eq!(set.set(Knob::CutoffWriteback, 10), 10);
    assert_eq!(set.set(Knob::CutoffWritebackSync, 60), 60);
    assert_eq!(set.set(Knob::CutoffWriteback, 80), 60);
}

/// T159.
#[test]
fn bytes_are_shown_as_the_kernel_shows_them() {
    let table = [
        (0, "0.0k"),
        (1, "0.0k"),
        (512, "0.5k"),
        (1023, "0.9k"),
        (1024, "1.0k"),
        (999 << 10, "999.0k"),
        ((1000 << 10) - 1, "999.9k"),
        (1000 << 10, "0.9M"),
        (1023 << 10, "0.9M"),
        (4 << 20, "4.0M"),
        (8 << 20, "8.0M"),
        (-(8 << 20), "-8.0M"),
        (1 << 40, "1.0T"),
        (i64::MAX, "7.9E"),
    ];
    for (bytes, shown) in table {
        assert_eq!(human(bytes), shown, "{bytes}");
    }
}

#[test]
fn a_change_is_told_to_who_waits_for_it() {
    let settings = Settings::new(Scope::Volume, &Initial::new());
    let waits = settings.changed.wait();
    settings.set(Knob::WritebackRunning, 0);
    let mut waits = std::pin::pin!(waits);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(waits.as_mut().poll(&mut context).is_ready());
}
