use super::*;
use std::os::unix::fs::FileExt;

fn passed_through(dir: &Path, blocks: u64) -> (Handle, Model, PathBuf) {
    let path = dir.join("backing.img");
    make_file(&path, DATA_OFFSET_BYTES + blocks * load::BLOCK_BYTES).expect("room");
    let model = Model::new(blocks);
    load::fill(&path, DATA_OFFSET_BYTES, &model).expect("filled");
    let flags = <crate::flags::Flags as clap::Parser>::parse_from([
        "brigade".as_ref(),
        "format".as_ref(),
        "--backing".as_ref(),
        path.as_os_str(),
    ]);
    let crate::flags::Verb::Format(flags) = flags.verb else {
        panic!("format")
    };
    format::plan(&flags)
        .expect("fine")
        .write()
        .expect("written");
    (
        Builder::new().backing(&path).open().expect("opens"),
        model,
        path,
    )
}

#[test]
fn what_the_load_wrote_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let (handle, mut model, path) = passed_through(dir.path(), 1000);
    let is_done = AtomicBool::new(false);
    let totals =
        load::run(&handle, &mut model, Duration::from_millis(300), &is_done).expect("no mismatch");
    assert!(totals.reads > 0 && totals.writes > 0, "{totals:?}");
    handle.stop().expect("stops");
    let handle = Builder::new().backing(&path).open().expect("opens again");
    assert_eq!(
        load::verify(&handle, &model).expect("no mismatch"),
        1000 * load::BLOCK_BYTES
    );
}

#[test]
fn one_wrong_byte_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let (handle, model, path) = passed_through(dir.path(), 300);
    handle.stop().expect("stops");
    let file = OpenOptions::new().write(true).open(&path).expect("ours");
    file.write_all_at(&[0, 0], DATA_OFFSET_BYTES + 700_000)
        .expect("written");
    let handle = Builder::new().backing(&path).open().expect("opens again");
    let error = load::verify(&handle, &model)
        .expect_err("a mismatch")
        .to_string();
    assert!(error.contains("at byte 70000"), "{error}");
}
