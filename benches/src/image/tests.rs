use super::*;
use brigade_fsck::Device;
use brigade_fsck::check::{self, Options, Report, Verdict};
use std::path::PathBuf;

struct Made {
    _folder: tempfile::TempDir,
    paths: [PathBuf; 2],
    layout: Layout,
}

fn made(words: &str) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["cache", "backing"].map(|name| folder.path().join(name));
    let mut arguments: Vec<String> = words.split_whitespace().map(String::from).collect();
    arguments.extend(paths.iter().map(|path| path.display().to_string()));
    let (recipe, _) = parse(&arguments).unwrap();
    let layout = make(&recipe, &paths[0], &paths[1]).unwrap();
    Made {
        _folder: folder,
        paths,
        layout,
    }
}

fn checked(made: &Made) -> Report {
    let files = made.paths.each_ref().map(|path| File::open(path).unwrap());
    let devices: Vec<Device<'_>> = files
        .iter()
        .map(|file| Device {
            name: "image".into(),
            source: file,
            size_bytes: file.metadata().unwrap().len(),
            logical_block_bytes: 512,
        })
        .collect();
    let options = Options {
        data: true,
        ..Options::default()
    };
    check::run(&devices, &options, &mut |_| ())
}

fn is_clean(words: &str) {
    let report = checked(&made(words));
    assert_eq!(report.verdict(), Verdict::Clean, "{words}: {report:?}");
    assert!(report.findings.is_empty(), "{words}: {:?}", report.findings);
}

#[test]
fn an_image_of_any_shape_is_clean_and_its_clean_data_is_that_of_the_backing_device() {
    is_clean("--extents 1");
    is_clean("--extents 5000 --bucket 64k");
    is_clean("--extents 20000 --bucket 16k --dirty 30 --by kernel");
    is_clean("--extents 7000 --bucket 64k --block 512 --extent 512 --live 40 --dirty 100");
    is_clean("--extents 20000 --bucket 64k --fill 20 --fanout 3 --sets 4 --seed 9");
}

#[test]
fn a_flipped_bit_of_an_image_is_found() {
    let made = made("--extents 5000 --bucket 64k");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&made.paths[0])
        .unwrap();
    let at = made.layout.pointer(made.layout.node_start).sector() * 512 + 100;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    assert_eq!(checked(&made).verdict(), Verdict::Errors);
}

#[test]
fn no_two_extents_share_a_place_and_each_lies_in_a_data_bucket() {
    let made = made("--extents 3000 --bucket 64k --live 70");
    let layout = &made.layout;
    let mut places: Vec<u64> = (0..3000).map(|i| layout.place(i).sector()).collect();
    let data = layout.data_start * 128..layout.data_end * 128;
    assert!(places.iter().all(|sector| data.contains(sector)));
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 3000);
}

#[test]
fn the_depth_is_what_the_fanout_makes_it() {
    let layout = made("--extents 20000 --bucket 16k --fanout 4").layout;
    assert_eq!(layout.nodes.len(), 4, "{:?}", layout.nodes);
}

#[test]
fn a_size_too_small_and_words_without_sense_are_refused() {
    let refused = |words: &str| {
        let arguments: Vec<String> = words.split_whitespace().map(String::from).collect();
        match parse(&arguments) {
            Err(_) => true,
            Ok((recipe, _)) => Layout::of(&recipe).is_err(),
        }
    };
    assert!(refused("--extents 100000 --size 300M c b"));
    assert!(refused("--extents ten c b"));
    assert!(refused("--sets 0 c b"));
    assert!(refused("--extent 6000 c b"));
    assert!(refused("--extents 10 c"));
    assert!(!refused("--extents 100000 --size 600M c b"));
}
