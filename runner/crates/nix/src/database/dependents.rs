//! What waits behind a derivation: derivations in the store that need it and are not built.

use std::collections::HashSet;

use super::{Database, DatabaseError};

impl Database {
    /// How many derivations stand one after another behind the derivation `drv_path`: the longest
    /// chain of derivations that need it and have an output that is not valid. Looks at `most` of
    /// them, and then says how far it came.
    ///
    /// # Errors
    /// If the database cannot be read.
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
            // Level by level: a derivation that is in several counts in the last, which is the end
            // of its longest chain.
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
