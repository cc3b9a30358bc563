#include "rmoe/cli/command.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <new>

#include <CLI/CLI.hpp>

#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/base/nearest.h"
#include "rmoe/base/version.h"
#include "rmoe/config/run.h"

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

// Every key that `app` takes as a config flag, "model.layers".
std::vector<std::string> config_keys(const CLI::App* app, const Globals& globals) {
  const auto found = globals.config_keys.find(app);
  if (found == globals.config_keys.end()) return {};
  std::vector<std::string> keys;
  for (const DocEntry& entry : found->second()) keys.push_back(entry.key);
  return keys;
}

std::string outermost(const std::string& key) { return key.substr(0, key.find_first_of(".[")); }

// "layers" of --layers=4.
std::string name_of(const std::string& option) { return option.substr(2, option.find('=') - 2); }

bool is_config_flag(const std::string& arg, const CLI::App* app, const Globals& globals) {
  if (!arg.starts_with("--") || !globals.config_keys.contains(app)) return false;
  const std::string name = name_of(arg);
  if (declares(app, "--" + name)) return false;
  const auto is_outermost = [&](const std::string& key) { return outermost(key) == name; };
  return name.find('.') != name.npos || std::ranges::any_of(config_keys(app, globals), is_outermost);
}

// Takes the config flags out of `args` before CLI11 sees them: it would read the 4 of "--model.layers 4" as a
// positional argument.
std::vector<std::string> extract_config_flags(CLI::App& root, std::vector<std::string>& args, const Globals& globals) {
  std::vector<std::string> flags, rest;
  CLI::App* app = &root;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "--") {
      rest.insert(rest.end(), args.begin() + static_cast<std::ptrdiff_t>(i), args.end());
      break;
    }
    if (!is_config_flag(arg, app, globals)) {
      if (CLI::App* inner = subcommand(*app, arg)) app = inner;
      rest.push_back(arg);
      continue;
    }
    flags.push_back(arg);
    const bool has_value = arg.find('=') != std::string::npos;
    if (!has_value && i + 1 < args.size() && !args[i + 1].starts_with("--")) flags.push_back(args[++i]);
  }
  args = std::move(rest);
  return flags;
}

// The innermost subcommand that was named.
CLI::App* innermost(CLI::App& root) {
  CLI::App* app = &root;
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  return app;
}

Error unknown_option(const CLI::App* app, const std::string& option, const std::vector<std::string>& keys) {
  std::vector<std::string> known, last_parts;
  for (const CLI::App* at = app; at; at = at->get_parent()) {
    for (const CLI::Option* declared : at->get_options()) {
      for (const std::string& name : declared->get_lnames()) known.push_back("--" + name);
    }
  }
  for (const std::string& key : keys) {
    known.push_back("--" + outermost(key));
    last_parts.push_back("--" + key.substr(key.rfind('.') + 1));
  }
  // A config key without its section: --layers.
  const auto full_key = [&](const std::string& name) {
    const auto at = std::ranges::find(last_parts, name) - last_parts.begin();
    return name.empty() || at == std::ssize(keys) ? "" : "--" + keys[static_cast<size_t>(at)];
  };
  std::string meant = full_key(option);
  if (meant.empty()) meant = nearest(option, known);
  if (meant.empty()) meant = full_key(nearest(option, last_parts));
  return {Exit::kBadInput, str(where(app), "unknown option ", option),
          meant.empty() ? str("`", full_name(app), " --help` lists the options") : str("did you mean '", meant, "'?")};
}

Error unknown_argument(const CLI::App* app, const std::string& arg, const Globals& globals) {
  if (arg.starts_with("-")) return unknown_option(app, arg.substr(0, arg.find('=')), config_keys(app, globals));
  std::vector<std::string> known;
  for (const CLI::App* command : app->get_subcommands(nullptr)) known.push_back(command->get_name());
  if (known.empty()) {
    return {Exit::kBadInput, str(where(app), "unexpected argument '", arg, "'"),
            str("`", full_name(app), " --help` shows what it takes")};
  }
  return {Exit::kBadInput, str(where(app), "unknown command '", arg, "'"), help_for_unknown(arg, known)};
}

// CLI11's complaint in the shape of ours.
Error usage_error(CLI::App& root, const CLI::ParseError& error, const std::vector<std::string>& args,
                  const Globals& globals) {
  const CLI::App* app = innermost(root);
  // A word that is no subcommand leaves CLI11 asking for one.
  const bool command_missing =
      dynamic_cast<const CLI::RequiredError*>(&error) && !app->get_subcommands(nullptr).empty();
  if (command_missing || dynamic_cast<const CLI::ExtrasError*>(&error)) {
    for (const CLI::App* at = app; at; at = at->get_parent()) {
      std::vector<std::string> extras = at->remaining();
      std::erase(extras, "--");
      if (extras.empty()) continue;
      const auto mark = std::ranges::find(args, "--");
      if (std::find(mark, args.end(), extras.front()) == args.end()) {
        return unknown_argument(at == &root ? app : at, extras.front(), globals);
      }
      return {Exit::kBadInput, str(where(app), "unexpected argument '", extras.front(), "'"),
              "what follows '--' is neither an option nor a command"};
    }
  }
  if (command_missing) {
    return {Exit::kBadInput, str(where(app), "a command is missing"), str("`", full_name(app), " --help` lists them")};
  }
  std::string message = error.what();
  std::replace(message.begin(), message.end(), '\n', ' ');
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error)) {
    const std::string option = message.substr(0, message.find(':'));
    if (message.ends_with(" missing")) message = option + ": no value given";
    if (message.find(": At Most 1 ") != message.npos) {
      message = str(option, ": given ", message.substr(message.rfind(' ') + 1), " times, expected once");
    }
  }
  return {Exit::kBadInput, where(app) + message, str("`", full_name(app), " --help` shows what it takes")};
}

// Names of files and values of flags may hold anything; a message is one line and does nothing to the terminal.
std::string visible(const std::string& text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += str("\\x", kHex[byte >> 4], kHex[byte & 15]);
    } else {
      out += c;
    }
  }
  return out;
}

int report(const Error& error, bool json) {
  if (json) {
    Json object{{"code", static_cast<int>(error.code())}, {"message", error.message()}};
    if (!error.help().empty()) object["help"] = error.help();
    std::cout << json_text(Json{{"error", std::move(object)}}) << "\n";
  }
  log_line("rmoe: " + visible(error.message()));
  if (!error.help().empty()) log_line("  help: " + visible(error.help()));
  return static_cast<int>(error.code());
}

// Anything that is not ours to word, in one line: torch's messages go on with a stack trace.
Error from_exception(const std::exception& error) {
  const std::string text = error.what();
  if (dynamic_cast<const std::bad_alloc*>(&error) || text.find("can't allocate memory") != std::string::npos) {
    return {Exit::kIo, "out of memory", "a smaller model, batch or block needs less"};
  }
  if (const auto* failed = dynamic_cast<const std::filesystem::filesystem_error*>(&error)) {
    return {Exit::kIo, str("cannot use ", failed->path1().string(), ": ", failed->code().message())};
  }
  return {Exit::kBug, "internal error: " + text.substr(0, text.find('\n'))};
}

// What is thrown in a thread of a kernel reaches no handler: the same line and exit code, from there.
[[noreturn]] void end_from_any_thread() noexcept {
  int exit_code = static_cast<int>(Exit::kBug);
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const Error& error) {
    exit_code = report(error, false);
  } catch (const std::exception& error) {
    exit_code = report(from_exception(error), false);
  } catch (...) {
  }
  std::_Exit(exit_code);
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

void refuse_empty_values(CLI::App& app, const Globals& globals) {
  const auto not_empty = [](const std::string& text) -> std::string {
    return text.empty() ? "expected a value, got an empty text" : "";
  };
  for (CLI::Option* option : app.get_options()) {
    if (option->get_items_expected_max() > 0 && !globals.may_be_empty.contains(option)) option->check(not_empty);
  }
  for (CLI::App* inner : app.get_subcommands(nullptr)) refuse_empty_values(*inner, globals);
}

int run(std::vector<std::string> args) {
  Globals globals;
  CLI::App root("Language models with Mixture-of-Experts layers whose routers remember.", "rmoe");
  root.require_subcommand(1);
  root.fallthrough();
  root.add_flag("--json", globals.json, "results as JSON on standard output");
  root.add_flag("-q,--quiet", globals.quiet, "no progress, only warnings and errors");
  root.add_option("--threads", globals.threads, "threads to compute with (default: all CPUs of this process)")
      ->check(integer(1, kMostThreads));
  root.set_version_flag("--version", str("rmoe ", kVersion));
  root.footer("`rmoe COMMAND --help` shows the options of a command, with an example.");
  for (const Command& command : commands()) {
    CLI::App* app = root.add_subcommand(command.name, command.summary);
    app->footer(str("Example:\n  ", command.example, "\n\n--json, --quiet and --threads: see `rmoe --help`."));
    command.setup(*app, globals);
  }
  refuse_empty_values(root, globals);
  root.parse_complete_callback([&] { set_log_level(globals.quiet ? Level::kQuiet : Level::kNormal); });

  const bool json = std::find(args.begin(), args.end(), "--json") != args.end();
  try {
    globals.config_flags = extract_config_flags(root, args, globals);
    root.parse(std::vector<std::string>(args.rbegin(), args.rend()));
    return globals.exit_code;
  } catch (const CLI::Success& request) {  // --help, --version
    return root.exit(request);
  } catch (const CLI::ParseError& error) {
    return report(usage_error(root, error, args, globals), json);
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

CLI::Validator integer(int64_t low, int64_t high) {
  const bool open = high == std::numeric_limits<int64_t>::max();
  const std::string bounds = open ? str("from ", low) : str("from ", low, " to ", high);
  const auto check = [=](const std::string& text) -> std::string {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= low && value <= high) return "";
    return str("expected an integer ", bounds, ", got '", text, "'");
  };
  return {check, bounds};
}

CLI::Validator number() {
  const auto check = [](const std::string& text) -> std::string {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size()) return "";
    return str("expected a number, got '", text, "'");
  };
  return {check, ""};
}

void add_device_option(CLI::App& app, std::string& device) {
  app.add_option("--device", device, "what to compute on: cpu, cuda or cuda:NUMBER")->capture_default_str();
}

int run_command_line(std::vector<std::string> args) {
  std::set_terminate(&end_from_any_thread);
  return finish_output(run(std::move(args)));
}

}  // namespace rmoe::cli
