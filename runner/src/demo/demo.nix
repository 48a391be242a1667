# What `hookrun demo` builds. There is no nixpkgs: /bin/sh and its built-in commands are all there
# is.
let
  script = name: attributes: text: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" text ];
  } // attributes);
in rec {
  # A dependency, and what depends on it: two builds, two events, two uploads.
  greeting = script "greeting" { } "echo hello > $out";
  letter = script "letter" { inherit greeting; } "read word < $greeting; echo \"$word, Nix (from $greeting)\" > $out";

  # Another result with every build.
  dice = script "dice" { } "read number < /proc/sys/kernel/random/uuid; echo $number > $out";

  # For builders.
  parcel = script "parcel" { } "echo built on a builder > $out";
}
