//! Attacks before the first hook: a constructor that runs when the component is instantiated. It
//! cannot read its configuration, so the byte after [`MARK`] selects the attack. The tests change
//! this byte in the built component.

/// The mark that tests find in the component. The last byte selects the attack.
const MARK: [u8; 16] = *b"hostile-start: 0";

static CHOICE: [u8; 16] = MARK;

#[cfg(target_arch = "wasm32")]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start;

#[cfg_attr(
    not(target_arch = "wasm32"),
    expect(dead_code, reason = "only a component has the constructor")
)]
extern "C" fn start() {
    // SAFETY: a reference is valid for reads. Volatile, so that the compiler does not know the
    // byte.
    let [.., choice] = unsafe { std::ptr::read_volatile(&raw const CHOICE) };
    match choice {
        b'1' => crate::bombs::endless(),
        b'2' => crate::bombs::memory(),
        b'3' => std::process::exit(0),
        _ => {}
    }
}
