#include "rmoe/cli/command.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <new>

#include <CLI/CLI.hpp>

#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/base/nearest.h"
#include "rmoe/base/version.h"

namespace rmoe::cli {
namespace {

std::vector<Command>& table() {
  static std::vector<Command> commands;
  return commands;
}

// "rmoe config show", the name that a person types.
std::string full_name(const CLI::App* app) {
  const CLI::App* parent = app->get_parent();
  return parent ? full_name(parent) + " " + app->get_name() : app->get_name();
}

// "config show: ", what an error message begins with; nothing for the program itself, which report() names.
std::string where(const CLI::App* app) {
  return app->get_parent() ? full_name(app).substr(std::string_view("rmoe ").size()) + ": " : "";
}

bool declares(const CLI::App* app, const std::string& option) {
  for (; app; app = app->get_parent()) {
    if (app->get_option_no_throw(option)) return true;
  }
  return false;
}

CLI::App* subcommand(CLI::App& app, const std::string& name) {
  const auto named = app.get_subcommands([&](CLI::App* inner) { return inner->get_name() == name; });
  return named.empty() ? nullptr : named.front();
}

// Takes the config flags out of `args` before CLI11 sees them: it would read the 4 of "--model.layers 4" as a
// positional argument.
std::vector<std::string> extract_config_flags(CLI::App& root, std::vector<std::string>& args) {
  std::vector<std::string> flags, rest;
  CLI::App* app = &root;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "--") {
      rest.insert(rest.end(), args.begin() + static_cast<std::ptrdiff_t>(i), args.end());
      break;
    }
    const bool is_flag = arg.starts_with("--");
    if (!is_flag || !app->get_allow_extras() || declares(app, arg.substr(0, arg.find('=')))) {
      if (CLI::App* inner = is_flag ? nullptr : subcommand(*app, arg)) app = inner;
      rest.push_back(arg);
      continue;
    }
    flags.push_back(arg);
    const bool has_value = arg.find('=') != std::string::npos;
    if (!has_value && i + 1 < args.size() && !args[i + 1].starts_with("--")) flags.push_back(args[++i]);
  }
  app->allow_extras(false);  // whatever else CLI11 does not know is a mistake
  args = std::move(rest);
  return flags;
}

// The innermost subcommand that was named.
CLI::App* innermost(CLI::App& root) {
  CLI::App* app = &root;
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  return app;
}

Error unknown_argument(const CLI::App* app, const std::string& arg) {
  std::vector<std::string> known;
  if (arg.starts_with("-")) {
    const std::string option = arg.substr(0, arg.find('='));
    for (const CLI::App* at = app; at; at = at->get_parent()) {
      for (const CLI::Option* declared : at->get_options()) {
        for (const std::string& name : declared->get_lnames()) known.push_back("--" + name);
      }
    }
    const bool near = !nearest(option, known).empty();
    return {Exit::kBadInput, str(where(app), "unknown option ", option),
            near ? help_for_unknown(option, known) : str("`", full_name(app), " --help` lists the options")};
  }
  for (const CLI::App* command : app->get_subcommands(nullptr)) known.push_back(command->get_name());
  if (known.empty()) {
    return {Exit::kBadInput, str(where(app), "unexpected argument '", arg, "'"),
            str("`", full_name(app), " --help` shows what it takes")};
  }
  return {Exit::kBadInput, str(where(app), "unknown command '", arg, "'"), help_for_unknown(arg, known)};
}

// CLI11's complaint in the shape of ours.
Error usage_error(CLI::App& root, const CLI::ParseError& error, const std::vector<std::string>& args) {
  const CLI::App* app = innermost(root);
  if (dynamic_cast<const CLI::ExtrasError*>(&error)) {
    for (const CLI::App* at = app; at; at = at->get_parent()) {
      if (const auto extras = at->remaining(); !extras.empty())
        return unknown_argument(at == &root ? app : at, extras.front());
    }
  }
  if (dynamic_cast<const CLI::RequiredError*>(&error) && !app->get_subcommands(nullptr).empty()) {
    // A word that is no subcommand leaves CLI11 asking for one.
    for (const std::string& arg : args) {
      if (!arg.starts_with("-") && arg != app->get_name()) return unknown_argument(app, arg);
    }
    return {Exit::kBadInput, str(where(app), "a command is missing"), str("`", full_name(app), " --help` lists them")};
  }
  std::string message = error.what();
  std::replace(message.begin(), message.end(), '\n', ' ');
  return {Exit::kBadInput, where(app) + message, str("`", full_name(app), " --help` shows what it takes")};
}

int report(const Error& error, bool json) {
  if (json) {
    Json object{{"code", static_cast<int>(error.code())}, {"message", error.message()}};
    if (!error.help().empty()) object["help"] = error.help();
    std::cout << json_text(Json{{"error", std::move(object)}}) << "\n";
  }
  log_line("rmoe: " + error.message());
  if (!error.help().empty()) log_line("  help: " + error.help());
  return static_cast<int>(error.code());
}

// Anything that is not ours to word, in one line: torch's messages go on with a stack trace.
Error from_exception(const std::exception& error) {
  const std::string text = error.what();
  if (dynamic_cast<const std::bad_alloc*>(&error) || text.find("can't allocate memory") != std::string::npos) {
    return {Exit::kIo, "out of memory", "a smaller model, batch or block needs less"};
  }
  return {Exit::kBug, "internal error: " + text.substr(0, text.find('\n'))};
}

// Results that did not reach the reader are a failure, but a reader who closed the pipe has seen enough.
int finish_output(int exit_code) {
  errno = 0;
  std::cout.flush();
  if (std::fflush(stdout) == 0 && !std::ferror(stdout) && std::cout) return exit_code;
  const int reason = errno;
  pollfd out{1, POLLOUT, 0};
  const bool closed = reason == EPIPE || (::poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0);
  if (closed) return 128 + SIGPIPE;
  return report(Error(Exit::kIo, reason ? "cannot write standard output: " + errno_text(reason)
                                        : std::string("cannot write standard output")),
                false);
}

int run(std::vector<std::string> args) {
  Globals globals;
  CLI::App root("Language models with Mixture-of-Experts layers whose routers remember.", "rmoe");
  root.require_subcommand(1);
  root.fallthrough();
  root.add_flag("--json", globals.json, "results as JSON on standard output");
  root.add_flag("-q,--quiet", globals.quiet, "no progress, only warnings and errors");
  root.add_option("--threads", globals.threads, "threads to compute with (default: all CPUs of this process)")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}));
  root.set_version_flag("--version", str("rmoe ", kVersion));
  root.footer("`rmoe COMMAND --help` shows the options of a command, with an example.");
  for (const Command& command : commands()) {
    CLI::App* app = root.add_subcommand(command.name, command.summary);
    app->footer(str("Example:\n  ", command.example, "\n\n--json, --quiet and --threads: see `rmoe --help`."));
    command.setup(*app, globals);
  }
  root.parse_complete_callback([&] { set_log_level(globals.quiet ? Level::kQuiet : Level::kNormal); });

  const bool json = std::find(args.begin(), args.end(), "--json") != args.end();
  try {
    globals.config_flags = extract_config_flags(root, args);
    root.parse(std::vector<std::string>(args.rbegin(), args.rend()));
    return globals.exit_code;
  } catch (const CLI::Success& request) {  // --help, --version
    return root.exit(request);
  } catch (const CLI::ParseError& error) {
    return report(usage_error(root, error, args), json);
  } catch (const Error& error) {
    return report(error, json);
  } catch (const std::exception& error) {
    return report(from_exception(error), json);
  }
}

}  // namespace

bool register_command(const Command& command) {
  auto& all = table();
  const auto before = [](const Command& a, const Command& b) { return std::string_view(a.name) < b.name; };
  all.insert(std::upper_bound(all.begin(), all.end(), command, before), command);
  return true;
}

const std::vector<Command>& commands() { return table(); }

void take_config_flags(CLI::App& app) { app.allow_extras(); }

int run_command_line(std::vector<std::string> args) { return finish_output(run(std::move(args))); }

}  // namespace rmoe::cli
