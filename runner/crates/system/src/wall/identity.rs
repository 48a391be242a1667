//! The user that a walled process runs as: another one, or the same without capabilities.

/// The identity of a walled process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Identity {
    /// The same user without any capability: root's files, but none of root's privileges.
    #[default]
    Powerless,
    /// This user. Only root can change to it.
    User(User),
}

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

impl User {
    /// Finds the user called `name`.
    ///
    /// # Errors
    /// Returns a part of a message, with the fix, if the user does not exist or is root.
    pub fn find(name: &str) -> Result<Self, String> {
        let Some(user) = uzers::get_user_by_name(name) else {
            return Err(format!(
                "there is no user `{name}`; create it with `useradd --system --no-create-home {name}`"
            ));
        };
        if user.uid() == 0 {
            return Err(format!("`{name}` is root, which guests never run as; name another user"));
        }
        Ok(Self { name: name.to_owned(), uid: user.uid(), gid: user.primary_group_id() })
    }
}
