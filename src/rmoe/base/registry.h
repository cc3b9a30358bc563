// Plug-ins that register themselves by name, and `Choice`, the config section that picks one.
//
// An interface names its registry beside its forward declaration; nothing here needs the complete interface, so that
// config structs stay free of torch:
//
//   class Router;
//   struct RouterShape;
//   using RouterRegistry = Registry<Router, const RouterShape&>;          // then the factory's arguments
//   template <> inline constexpr const char* rmoe::plural_name<Router> = "routers";   // in namespace rmoe or around it
//
// A plug-in is one file. Its constructor takes its Options, when it has any, then the factory's arguments:
//
//   class CosineRouter : public Router {
//    public:
//     struct Options { double init_scale = 10; static constexpr auto fields() {...} };
//     CosineRouter(const Options& options, const RouterShape& shape);
//   };
//   RMOE_REGISTER(RouterRegistry, "cosine", CosineRouter, "cosine of feature and expert direction (Chi et al. 2022)");
//
//   Choice<RouterRegistry> router{"linear"};                                // a field of a config struct
//   std::shared_ptr<Router> made = config.router.create(shape);
#pragma once

#include <any>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rmoe/base/error.h"
#include "rmoe/base/fields.h"
#include "rmoe/base/reflect.h"

namespace rmoe {

// The name of an interface's registry, in `rmoe list` and in messages: "routers".
template <class Interface>
inline constexpr const char* plural_name = nullptr;

struct Plugin {
  std::string name;
  std::string summary;  // one line, with its source
  std::any options;     // the defaults of its Options
  Section (*section)(std::any& options);
  std::any factory;  // a Registry<...>::Factory
};

// All plug-ins of one kind, sorted by name. Filled during static initialisation, constant afterwards.
class Catalogue {
 public:
  static Catalogue& of(std::string_view plural);  // made when first asked for
  static std::vector<const Catalogue*> all();     // sorted by plural name

  const std::string& plural() const { return plural_; }
  const std::vector<Plugin>& entries() const { return entries_; }
  std::vector<std::string> names() const;
  const Plugin* find_or_null(std::string_view name) const;
  const Plugin& find(std::string_view name) const;  // Error with the nearest name or all of them
  void add(Plugin plugin);                          // a name taken twice is a bug

 private:
  explicit Catalogue(std::string plural) : plural_(std::move(plural)) {}
  std::string plural_;
  std::vector<Plugin> entries_;
};

// A chosen plug-in with its options. Options are resolved when they are first needed: registries fill during static
// initialisation, in no order, and a Choice may be a default of a config made at that time.
class AnyChoice {
 public:
  AnyChoice(const char* plural, std::string kind, std::any options)
      : plural_(plural), kind_(std::move(kind)), options_(std::move(options)) {}

  const std::string& kind() const { return kind_; }
  // Chooses another plug-in, with its default options. The same kind again keeps the options.
  void set_kind(std::string kind);
  const Catalogue& catalogue() const { return Catalogue::of(plural_); }
  const Plugin& plugin() const { return catalogue().find(kind_); }
  const std::any& options() const;
  Section section();  // the options' fields; pointers into this object

  template <class Options>
  const Options& options_as() const {
    const auto* options = std::any_cast<Options>(&this->options());
    RMOE_ASSERT(options, plural_, ": the options of '", kind_, "' are of another type");
    return *options;
  }

  friend bool operator==(const AnyChoice& a, const AnyChoice& b);
  friend std::ostream& operator<<(std::ostream& out, const AnyChoice& choice);  // cosine{init_scale = 5.0}

 private:
  const char* plural_;
  std::string kind_;
  std::any options_;  // empty: the plug-in's defaults
};

namespace detail {
struct NoOptions {
  static constexpr auto fields() { return std::tuple<>{}; }
};
template <class T>
struct OptionsOf {
  using type = NoOptions;
};
template <class T>
  requires requires { typename T::Options; }
struct OptionsOf<T> {
  using type = typename T::Options;
};
}  // namespace detail

template <class R>
class Choice;

template <class Interface, class... Args>
class Registry {
 public:
  using Factory = std::function<std::shared_ptr<Interface>(const std::any& options, Args...)>;

  static const char* plural() {
    static_assert(plural_name<Interface> != nullptr, "specialize plural_name beside the interface's declaration");
    return plural_name<Interface>;
  }
  static Catalogue& catalogue() { return Catalogue::of(plural()); }
  static const std::vector<Plugin>& entries() { return catalogue().entries(); }
  static const Plugin& find(std::string_view name) { return catalogue().find(name); }

  // Makes the chosen plug-in. Args are passed on as declared.
  static std::shared_ptr<Interface> create(const Choice<Registry>& choice, Args... args) {
    const auto* factory = std::any_cast<Factory>(&choice.plugin().factory);
    RMOE_ASSERT(factory, plural(), ": '", choice.kind(), "' was registered for other arguments");
    return (*factory)(choice.options(), std::forward<Args>(args)...);
  }

  // Enters T, an Interface with a constructor (const T::Options&, Args...), or (Args...) when it has no Options.
  template <class T>
  static bool add(const char* name, const char* summary) {
    using Options = typename detail::OptionsOf<T>::type;
    Factory factory = [](const std::any& options, Args... args) -> std::shared_ptr<Interface> {
      if constexpr (std::is_same_v<Options, detail::NoOptions>) {
        return std::make_shared<T>(std::forward<Args>(args)...);
      } else {
        return std::make_shared<T>(*std::any_cast<Options>(&options), std::forward<Args>(args)...);
      }
    };
    catalogue().add({name, summary, Options{},
                     [](std::any& options) { return section_of(*std::any_cast<Options>(&options)); },
                     std::move(factory)});
    return true;
  }
};

// A config section whose key `kind` names a plug-in of registry R and whose other keys are the fields of its Options.
template <class R>
class Choice : public AnyChoice {
 public:
  Choice() : AnyChoice(R::plural(), "", {}) {}
  explicit Choice(std::string kind) : AnyChoice(R::plural(), std::move(kind), {}) {}
  template <ConfigStruct Options>
  Choice(std::string kind, Options options) : AnyChoice(R::plural(), std::move(kind), std::move(options)) {}

  template <class... Args>
  auto create(Args&&... args) const {
    return R::create(*this, std::forward<Args>(args)...);
  }
};

}  // namespace rmoe

#define RMOE_CONCAT_(a, b) a##b
#define RMOE_CONCAT(a, b) RMOE_CONCAT_(a, b)

// Enters a plug-in when the program starts: RMOE_REGISTER(registry, name, type, summary);
#define RMOE_REGISTER(registry, name, type, summary) \
  [[maybe_unused]] static const bool RMOE_CONCAT(rmoe_registered_, __COUNTER__) = registry::add<type>(name, summary)
