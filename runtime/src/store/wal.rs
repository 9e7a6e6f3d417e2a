//! Whether SQLite's log of committed pages (`-wal`) is whole, looked at before SQLite opens it.
//!
//! SQLite reads its log up to the first frame whose checksum is wrong, and takes what follows as never written: after a loss of power
//! that is what it is. But where a byte has changed since, commits that were on the disk vanish without a word. The two can
//! be told apart. Each commit is synced before the first frame of the next is written (`synchronous = FULL`, and what a killed process left is
//! synced before it is opened), so a frame that
//! follows a commit and is linked to it by its checksum proves that everything up to that commit was on the disk: a frame before it that is
//! wrong was damaged later. The log's header is synced before any frame; one that is wrong is an unfinished one only if
//! every page in the log is in the database already.
//!
//! What cannot be told: damage in the last commit looks like one that was not finished, as does damage in the last frame of the one before.
//!
//! The format is that of <https://www.sqlite.org/fileformat2.html#walformat>.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const MAGIC: u32 = 0x377f_0682;
/// Sizes of pages that SQLite knows.
const PAGES: std::ops::RangeInclusive<usize> = 512..=65_536;

type Sum = (u32, u32);

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Fletcher's checksum as SQLite takes it, over words of the byte order that the magic number names.
fn sum(big: bool, (mut first, mut second): Sum, bytes: &[u8]) -> Sum {
    let words = |pair: &[u8; 4]| if big { u32::from_be_bytes(*pair) } else { u32::from_le_bytes(*pair) };
    for [one, two] in bytes.as_chunks::<4>().0.as_chunks::<2>().0 {
        first = first.wrapping_add(words(one)).wrapping_add(second);
        second = second.wrapping_add(words(two)).wrapping_add(first);
    }
    (first, second)
}

/// A frame: one page of a commit.
struct Frame {
    page: u32,
    commits: bool,
    salts: Sum,
    stored: Sum,
    /// What is summed: the first words of its header, and the page.
    head: [u8; 8],
    data: Vec<u8>,
}

/// Reads frames up to the last whole one.
fn frame(log: &mut impl Read, page_size: usize) -> io::Result<Option<Frame>> {
    let mut bytes = vec![0; FRAME_HEADER + page_size];
    match log.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let data = bytes.split_off(FRAME_HEADER);
    let mut head = [0; 8];
    head.copy_from_slice(&bytes[..8]);
    let salts = (word(&bytes, 8), word(&bytes, 12));
    let stored = (word(&bytes, 16), word(&bytes, 20));
    Ok(Some(Frame { page: word(&bytes, 0), commits: word(&bytes, 4) != 0, salts, stored, head, data }))
}

/// What is wrong with the log of a database, if anything is.
pub(super) fn damage(log: &Path, database: &Path) -> io::Result<Option<String>> {
    let mut file = match File::open(log) {
        Ok(file) => BufReader::with_capacity(1 << 20, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut header = [0; HEADER];
    if file.get_ref().metadata()?.len() < HEADER as u64 {
        return Ok(None);
    }
    file.read_exact(&mut header)?;
    let (magic, page_size) = (word(&header, 0), word(&header, 8) as usize);
    let big = magic & 1 == 1;
    let summed = sum(big, (0, 0), &header[..24]);
    let stored = (word(&header, 24), word(&header, 28));
    if magic & !1 != MAGIC || summed != stored || !PAGES.contains(&page_size) || !page_size.is_power_of_two() {
        return header_damage(&mut file, database);
    }
    let salts = (word(&header, 16), word(&header, 20));
    let (mut before, mut committed, mut bad) = (stored, false, None);
    for number in 1u64.. {
        let Some(frame) = frame(&mut file, page_size)? else { break };
        let ours = frame.salts == salts;
        let linked = ours && sum(big, sum(big, before, &frame.head), &frame.data) == frame.stored;
        match bad {
            None if !linked => bad = Some(number),
            Some(bad) if linked && committed => {
                return Ok(Some(format!(
                    "frame {bad} of it is damaged, and what was committed later stands behind it"
                )));
            }
            _ => {}
        }
        // A torn frame says anything, also that it commits: only one that is whole is believed.
        (before, committed) = (frame.stored, linked && frame.commits && bad.is_some());
    }
    Ok(None)
}

/// The header is wrong: harmless if all that the frames say is in the database.
fn header_damage(log: &mut (impl Read + Seek), database: &Path) -> io::Result<Option<String>> {
    let mut database = File::open(database)?;
    let mut head = [0; 100];
    let page_size = match database.read_exact(&mut head) {
        Ok(()) => match usize::from(u16::from_be_bytes([head[16], head[17]])) {
            1 => 65_536,
            size => size,
        },
        Err(_) => 4096,
    };
    if !PAGES.contains(&page_size) {
        return Ok(None);
    }
    log.seek(SeekFrom::Start(HEADER as u64))?;
    // Of each page the last that was committed.
    let (mut pages, mut group, mut salts) = (BTreeMap::new(), BTreeMap::new(), None);
    while let Some(frame) = frame(log, page_size)? {
        if frame.page == 0 || *salts.get_or_insert(frame.salts) != frame.salts {
            break;
        }
        group.insert(frame.page, frame.data);
        if frame.commits {
            pages.append(&mut group);
        }
    }
    for (page, data) in pages {
        let mut there = vec![0; page_size];
        database.seek(SeekFrom::Start((u64::from(page) - 1) * page_size as u64))?;
        if database.read_exact(&mut there).is_err() || there != data {
            return Ok(Some("its header is damaged, and commits that are nowhere else stand behind it".into()));
        }
    }
    Ok(None)
}
