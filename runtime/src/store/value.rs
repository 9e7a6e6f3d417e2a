//! What goes into a statement and what comes out of it, for both databases: whole numbers, text and bytes, each of which
//! may be absent. Both schemas use no other types.

use sqlx::{Row as _, postgres::PgRow, sqlite::SqliteRow};

use super::error::StoreError;

/// One bound parameter. An absent value keeps its type, which PostgreSQL asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// `INTEGER`, `BIGINT`.
    Int(Option<i64>),
    /// `TEXT`.
    Text(Option<&'a str>),
    /// `BLOB`, `BYTEA`.
    Bytes(Option<&'a [u8]>),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Value::Int(Some(value))
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Value::Int(Some(value.into()))
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Value::Int(Some(value.into()))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(value: Option<i64>) -> Self {
        Value::Int(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Value::Text(Some(value))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Value::Text(Some(value))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Value::Text(value)
    }
}

impl<'a> From<&'a Option<String>> for Value<'a> {
    fn from(value: &'a Option<String>) -> Self {
        Value::Text(value.as_deref())
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Value::Bytes(Some(value))
    }
}

impl<'a> From<&'a [u8; 32]> for Value<'a> {
    fn from(value: &'a [u8; 32]) -> Self {
        Value::Bytes(Some(value))
    }
}

impl<'a> From<&'a Vec<u8>> for Value<'a> {
    fn from(value: &'a Vec<u8>) -> Self {
        Value::Bytes(Some(value))
    }
}

impl<'a> From<Option<&'a [u8]>> for Value<'a> {
    fn from(value: Option<&'a [u8]>) -> Self {
        Value::Bytes(value)
    }
}

/// The parameters of a statement, `$1` first.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::Value::from($value)),*] };
}
pub(crate) use args;

/// A row that was read.
#[derive(Debug)]
pub enum Row {
    /// By SQLite.
    Sqlite(SqliteRow),
    /// By PostgreSQL.
    Postgres(PgRow),
}

macro_rules! column {
    ($row:expr, $index:expr) => {
        match $row {
            Row::Sqlite(row) => row.try_get($index),
            Row::Postgres(row) => row.try_get($index),
        }
        .map_err(StoreError::Database)
    };
}

impl Row {
    /// Its columns, to be taken in the order in which the statement names them.
    pub fn fields(&self) -> Fields<'_> {
        Fields { row: self, next: 0 }
    }
}

/// The columns of a row, one after the other.
#[derive(Debug)]
pub struct Fields<'r> {
    row: &'r Row,
    next: usize,
}

impl Fields<'_> {
    fn index(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    /// A whole number.
    pub fn int(&mut self) -> Result<i64, StoreError> {
        let index = self.index();
        column!(self.row, index)
    }

    /// A whole number or none.
    pub fn int_or_none(&mut self) -> Result<Option<i64>, StoreError> {
        let index = self.index();
        column!(self.row, index)
    }

    /// 0 or 1.
    pub fn flag(&mut self) -> Result<bool, StoreError> {
        Ok(self.int()? != 0)
    }

    /// Text.
    pub fn text(&mut self) -> Result<String, StoreError> {
        let index = self.index();
        column!(self.row, index)
    }

    /// Text or none.
    pub fn text_or_none(&mut self) -> Result<Option<String>, StoreError> {
        let index = self.index();
        column!(self.row, index)
    }

    /// Bytes.
    pub fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        let index = self.index();
        column!(self.row, index)
    }

    /// Bytes or none.
    pub fn bytes_or_none(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let index = self.index();
        column!(self.row, index)
    }

    /// A hash.
    pub fn hash(&mut self, table: &'static str) -> Result<[u8; 32], StoreError> {
        let bytes = self.bytes()?;
        bytes.try_into().map_err(|_| StoreError::corrupt(table, "", "a hash is not 32 bytes long"))
    }
}
