//! Computes the closure of a build's inputs with its size.

use super::{Database, DatabaseError};

/// The closure of a derivation's inputs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The total size as NARs, in bytes.
    pub bytes: u64,
    /// The largest paths with their sizes, in descending order.
    pub largest: Vec<(String, u64)>,
}

impl Database {
    /// Returns the valid paths that the derivation `drv_path` needs to be built: its sources and
    /// all outputs of the derivations that it depends on (even if it does not need all of them),
    /// with their closures. Returns `None` if these are more than `most` paths. Names the `largest`
    /// paths.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn inputs(
        &self,
        drv_path: &str,
        most: usize,
        largest: usize,
    ) -> Result<Option<Inputs>, DatabaseError> {
        let read = || -> Result<Option<Inputs>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "with recursive
                   direct(id, path) as (
                     select v.id, v.path from ValidPaths d join Refs r on r.referrer = d.id join ValidPaths v on v.id = r.reference
                     where d.path = ?1),
                   closure(id) as (
                     select id from direct where path not like '%.drv'
                     union
                     select v.id from direct join DerivationOutputs o on o.drv = direct.id join ValidPaths v on v.path = o.path
                     union
                     select r.reference from closure join Refs r on r.referrer = closure.id
                     limit ?2)
                 select v.path, coalesce(v.narSize, 0) from closure join ValidPaths v on v.id = closure.id order by 2 desc",
            )?;
            let limit = i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1);
            let mut rows = statement.query(rusqlite::params![drv_path, limit])?;
            let (mut inputs, mut count) = (Inputs::default(), 0);
            while let Some(row) = rows.next()? {
                let size = u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default();
                inputs.bytes = inputs.bytes.saturating_add(size);
                count += 1;
                if inputs.largest.len() < largest {
                    inputs.largest.push((row.get(0)?, size));
                }
            }
            Ok((count <= most).then_some(inputs))
        };
        read().map_err(|error| self.query(error))
    }

    /// Returns the time when the outputs of `drv_path` were registered as built on this machine, in
    /// seconds since 1970; `None` if they were not.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn built_here(&self, drv_path: &str) -> Result<Option<u64>, DatabaseError> {
        let read = || {
            let mut statement = self.connection.prepare_cached(
                "select max(p.registrationTime) from ValidPaths d join DerivationOutputs o on o.drv = d.id
                 join ValidPaths p on p.path = o.path where d.path = ?1 and p.ultimate = 1",
            )?;
            statement.query_row([drv_path], |row| row.get::<_, Option<i64>>(0))
        };
        let time = read().map_err(|error| self.query(error))?;
        Ok(time.and_then(|time| u64::try_from(time).ok()))
    }
}
