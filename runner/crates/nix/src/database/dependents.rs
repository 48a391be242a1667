//! Finds derivations in the store that depend on a derivation and are not built yet.

use std::collections::HashSet;

use super::{Database, DatabaseError};

impl Database {
    /// Returns the length of the longest chain of derivations that depend on `drv_path` and have an
    /// output that is not valid. At most `most` derivations are examined; the result is then the
    /// depth that was reached.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn dependents_depth(&self, drv_path: &str, most: usize) -> Result<u32, DatabaseError> {
        let count = || -> Result<u32, rusqlite::Error> {
            let transaction = self.connection.unchecked_transaction()?;
            let mut unbuilt = transaction.prepare(
                "select r.referrer from Refs r join ValidPaths v on v.id = r.referrer
                 where r.reference = ?1 and r.referrer != ?1 and v.path like '%.drv' and exists (
                     select 1 from DerivationOutputs o where o.drv = r.referrer and not exists (
                         select 1 from ValidPaths p where p.path = o.path))",
            )?;
            let mut level: Vec<i64> = transaction
                .prepare("select id from ValidPaths where path = ?1")?
                .query_map([drv_path], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let (mut depth, mut seen) = (0, 0);
            // Level by level. A derivation that is in several levels counts in the last one, which
            // is the end of its longest chain.
            loop {
                let mut next = HashSet::new();
                for id in level {
                    for referrer in unbuilt.query_map([id], |row| row.get(0))? {
                        next.insert(referrer?);
                    }
                }
                seen += next.len();
                if next.is_empty() {
                    return Ok(depth);
                }
                depth += 1;
                if seen >= most {
                    return Ok(depth);
                }
                level = next.into_iter().collect();
            }
        };
        count().map_err(|error| self.query(error))
    }
}
