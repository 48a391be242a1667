# The derivations that `hookrun demo` builds. There is no nixpkgs, only /bin/sh and its built-in
# commands.
let
  script = name: attributes: text: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" text ];
  } // attributes);
in rec {
  # A dependency and a derivation that uses it: two builds, two events, two uploads.
  greeting = script "greeting" { } "echo hello > $out";
  letter = script "letter" { inherit greeting; } "read word < $greeting; echo \"$word, Nix (from $greeting)\" > $out";

  # A different result in every build.
  dice = script "dice" { } "read number < /proc/sys/kernel/random/uuid; echo $number > $out";

  # The derivation for the builders.
  parcel = script "parcel" { } "echo built on a builder > $out";
}
