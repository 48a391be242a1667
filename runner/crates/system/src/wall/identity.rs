//! Who a walled process is: another user, or the same without capabilities.

/// Who to become.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Identity {
    /// Whoever it is, without any capability: root's files, and none of root's powers.
    #[default]
    Powerless,
    /// This user; for root only.
    User(User),
}

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its own group.
    pub gid: u32,
}

impl User {
    /// The user called `name`.
    ///
    /// # Errors
    /// There is none, or it is root: a fragment with the fix.
    pub fn find(name: &str) -> Result<Self, String> {
        let Some(user) = uzers::get_user_by_name(name) else {
            return Err(format!(
                "there is no user `{name}`; make it with `useradd --system --no-create-home {name}`"
            ));
        };
        if user.uid() == 0 {
            return Err(format!("`{name}` is root, which guests never run as; name another user"));
        }
        Ok(Self { name: name.to_owned(), uid: user.uid(), gid: user.primary_group_id() })
    }
}
