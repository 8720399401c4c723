//! The sink with bytes in any order.

use super::*;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// Sends the object in pieces of `piece` bytes, the parts in the given order, interleaved two by two. Parts that are
/// not in `order` are already in the file.
fn sink_all(
    object: &[u8],
    part_size: u64,
    order: &[u64],
    piece: usize,
    archive: Option<ArchiveKind>,
) -> DownloadSummary {
    let data = tempfile::tempfile().unwrap();
    let parts = (object.len() as u64).div_ceil(part_size).max(1);
    let left = (0..parts).filter(|part| !order.contains(part));
    let done: Vec<FinishedPart> = left
        .map(|part| {
            let start = (part * part_size) as usize;
            let bytes = &object[start..object.len().min(start + part_size as usize)];
            data.write_all_at(bytes, start as u64).unwrap();
            let mut crc = CrcKind::Crc64Nvme.digest();
            crc.update(bytes);
            let crc = crc.finalize();
            FinishedPart { part, crc }
        })
        .collect();
    let shape = PartLayout {
        size: Some(object.len() as u64),
        part_size,
        crc: CrcKind::Crc64Nvme,
        archive,
    };
    let (sink, thread) =
        DownloadSink::start(DownloadFile { data, record: None }, shape, &done).unwrap();
    block_on(async {
        for pair in order.chunks(2) {
            let range = |part: u64| {
                let start = (part * part_size) as usize;
                (start, object.len().min(start + part_size as usize))
            };
            let mut at: Vec<usize> = pair.iter().map(|part| range(*part).0).collect();
            while at.iter().zip(pair).any(|(at, part)| *at < range(*part).1) {
                for (at, part) in at.iter_mut().zip(pair) {
                    let end = range(*part).1.min(*at + piece);
                    if *at < end {
                        sink.send_piece(*at as u64, Bytes::copy_from_slice(&object[*at..end]))
                            .await
                            .unwrap();
                        *at = end;
                    }
                }
            }
            for part in pair {
                sink.finish_part(*part).await.unwrap();
            }
        }
    });
    drop(sink);
    thread.join().unwrap().unwrap().0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn digests_do_not_depend_on_the_order_of_arrival(
        object in proptest::collection::vec(any::<u8>(), 0..5000),
        part_size in 1u64..2000,
        piece in 1usize..700,
        seed in any::<u64>(),
    ) {
        let parts = (object.len() as u64).div_ceil(part_size).max(1);
        let mut order: Vec<u64> = (0..parts).collect();
        order.sort_by_key(|part| (part + 1).wrapping_mul(seed | 1));
        order.truncate(parts.div_ceil(2) as usize + seed as usize % 3);
        let summary = sink_all(&object, part_size, &order, piece, None);
        let mut crc = CrcKind::Crc64Nvme.digest();
        crc.update(&object);
        prop_assert_eq!(summary.sha256, hostkit::hex::encode(&Sha256::digest(&object)));
        prop_assert_eq!(summary.crc, crc.finalize());
        prop_assert_eq!(summary.size, object.len() as u64);
    }

    #[test]
    fn archive_check_does_not_depend_on_order_of_arrival(
        plain in proptest::collection::vec(any::<u8>(), 1..5000),
        part_size in 1u64..2000,
        piece in 1usize..700,
        seed in any::<u64>(),
        changed in any::<prop::sample::Index>(),
    ) {
        let mut gzip = Vec::new();
        let level = flate2::Compression::fast();
        std::io::Read::read_to_end(&mut flate2::bufread::GzEncoder::new(plain.as_slice(), level), &mut gzip).unwrap();
        let parts = (gzip.len() as u64).div_ceil(part_size);
        let mut order: Vec<u64> = (0..parts).collect();
        order.sort_by_key(|part| (part + 1).wrapping_mul(seed | 1));
        order.truncate(parts.div_ceil(2) as usize + seed as usize % 3);
        let broken = |object: &[u8]| sink_all(object, part_size, &order, piece, Some(ArchiveKind::Gz)).broken;
        prop_assert_eq!(broken(&gzip), None);
        let at = 10 + changed.index(gzip.len() - 10);
        gzip[at] ^= 1;
        prop_assert!(broken(&gzip).is_some());
    }
}

#[test]
fn an_unfinished_object_has_no_digest() {
    let shape = PartLayout {
        size: Some(4),
        part_size: 4,
        crc: CrcKind::Crc64Nvme,
        archive: None,
    };
    let (sink, thread) = DownloadSink::start(
        DownloadFile {
            data: tempfile::tempfile().unwrap(),
            record: None,
        },
        shape,
        &[],
    )
    .unwrap();
    block_on(sink.send_piece(0, Bytes::from_static(b"ab"))).unwrap();
    drop(sink);
    assert!(thread.join().unwrap().is_err());
}
