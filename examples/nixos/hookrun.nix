# A NixOS module. In configuration.nix:
#
#   imports = [ ./hookrun.nix ];
#   services.hookrun = {
#     enable = true;
#     package = ...;                       # a package with bin/hookrun and bin/hookrun-hook
#     settings.plugins.cache = { source = "bundled:s3-upload"; ... };   # as in hookrun.toml
#   };
{ config, lib, pkgs, ... }:

let
  cfg = config.services.hookrun;
  format = pkgs.formats.toml { };
  # A store path: a new version has another path, so an upgrade does not affect running builds.
  program = "${cfg.package}/bin/hookrun";
  # The small program for the hooks that every build waits for.
  hook = "${cfg.package}/bin/hookrun-hook";
  version = config.nix.package.version;
  # These versions ignore `build-hook` in the system's nix.conf.
  ignoresBuildHook = lib.versionAtLeast version "2.25" && lib.versionOlder version "2.34";
in
{
  options.services.hookrun = {
    enable = lib.mkEnableOption "hookrun as the hooks of Nix";

    package = lib.mkOption {
      type = lib.types.package;
      description = "The package with bin/hookrun and bin/hookrun-hook.";
    };

    settings = lib.mkOption {
      type = format.type;
      default = { };
      description = "The contents of hookrun.toml. Do not write secrets here, because the file is in the store; name files that contain them.";
    };

    hooks = lib.mkOption {
      type = lib.types.listOf (lib.types.enum [ "post-build" "diff" "builder-selection" ]);
      default = [ "post-build" "diff" ];
      description = "Which hooks of Nix hookrun serves.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.hookrun.settings.worker = {
      start = lib.mkDefault "service";
      user = lib.mkDefault "hookrun";
    };
    # Plugins run as this user. The service runs as root, because it takes events from build users
    # and reads secrets.
    users.users.hookrun = lib.mkIf (cfg.settings.worker.user == "hookrun") { isSystemUser = true; group = "hookrun"; };
    users.groups.hookrun = lib.mkIf (cfg.settings.worker.user == "hookrun") { };

    environment.systemPackages = [ cfg.package ];
    environment.etc."hookrun/hookrun.toml".source = format.generate "hookrun.toml" cfg.settings;

    nix.settings = lib.mkMerge [
      (lib.mkIf (lib.elem "post-build" cfg.hooks) { post-build-hook = hook; })
      (lib.mkIf (lib.elem "diff" cfg.hooks) { run-diff-hook = true; diff-hook = hook; })
      (lib.mkIf (lib.elem "builder-selection" cfg.hooks && !ignoresBuildHook) { build-hook = program; })
    ];
    systemd.services.nix-daemon.environment =
      lib.mkIf (lib.elem "builder-selection" cfg.hooks && ignoresBuildHook) { NIX_CONFIG = "build-hook = ${program}"; };

    systemd.services.hookrun = lib.mkIf (cfg.settings.worker.start == "service") {
      description = "hookrun: run plugins on the builds of Nix";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      restartTriggers = [ config.environment.etc."hookrun/hookrun.toml".source ];
      # ../systemd/hookrun.service explains each line.
      serviceConfig = {
        Type = "notify";
        WatchdogSec = "2min";
        ExecStart = "${program} daemon";
        Restart = "on-failure";
        RestartSec = "5s";
        TimeoutStopSec = "30s";
        StateDirectory = [ "hookrun" "hookrun-fallback" ];
        StateDirectoryMode = "0755";
        RuntimeDirectory = "hookrun";
        RuntimeDirectoryMode = "0755";
        RuntimeDirectoryPreserve = true;
        CPUWeight = 20;
        IOWeight = 20;
        ProtectSystem = "strict";
        ReadWritePaths = [ "-/nix/var/nix" "/var/tmp" ];
        ProtectHome = true;
        PrivateDevices = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        NoNewPrivileges = true;
        CapabilityBoundingSet = [ "CAP_CHOWN" "CAP_DAC_OVERRIDE" "CAP_FOWNER" "CAP_SETGID" "CAP_SETUID" ];
        RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" "AF_NETLINK" ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        LockPersonality = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [ "@system-service" "seccomp" "landlock_create_ruleset" "landlock_add_rule" "landlock_restrict_self" ];
      };
    };
  };
}
