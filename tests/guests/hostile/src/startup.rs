//! Attacks before any hook is called: a constructor that runs while the component is made. It
//! cannot ask for its configuration yet, so the byte after [`MARK`] says what it does; the tests
//! change it in the built component.

/// Found by the tests in the component; the last byte is the choice.
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
